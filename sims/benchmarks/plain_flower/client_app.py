"""ClientApp of the plain Flower baseline: weights in, one local epoch, weights out, in the clear."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sims.benchmarks.plain_flower.task import Settings, new_model, train, workload_folder

app = ClientApp()


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """One round at one site."""
    folder = workload_folder()
    settings = Settings.read(folder)
    model = new_model(folder, settings)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    site = settings.sites[int(context.node_config["partition-id"])]
    patients = train(model, folder, settings, site=site)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": patients}),
        }
    )
    return Message(content, reply_to=message)
