"""`participant run --home HOME`, with the app of `watched_site` in the place of the installed one."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from participant.config import load_site
from participant.supervisor import SiteAgent, check_data, ensure_budget, only_agent

REPOSITORY = Path(__file__).parents[2]
APP = "tests.end_to_end.watched_site:app"


async def keep_running(agent: SiteAgent) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await agent.run(stop)


def main(home: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # the executor must find the app
    with only_agent(home):
        agent = SiteAgent(home, app=APP)
        config = load_site(home)
        check_data(config)
        ensure_budget(home, config)
        asyncio.run(keep_running(agent))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
