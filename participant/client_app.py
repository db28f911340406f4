"""The participant's ClientApp: where the parts of a site are joined. Flower decodes, the participation decides.

The code that runs is the one installed at the site; a bundle from the coordinator names it but never replaces it.
"""

from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from coordinator.wire.records import decode_task, encode_outcome
from participant.participation import Participation

HOME_KEY = "site-home"
MAX_SITES_IN_PROCESS = 64

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One attempt at one round."""
    site = load_participation(Path(str(context.node_config[HOME_KEY])))
    return Message(encode_outcome(site.take_part(decode_task(message.content))), reply_to=message)


@lru_cache(maxsize=MAX_SITES_IN_PROCESS)
def load_participation(home: Path) -> Participation:
    """The site at that home, loaded once in this process."""
    return Participation(home)
