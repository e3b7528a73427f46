"""Mark a run as Crashed whose heartbeat stopped, so that it gives its concurrency slot back.

Killing a worker and its flow together (power cut, eviction, out of memory) leaves nobody to report the end of
the run: it would stay Running for ever. Run this once for a server; running it again replaces the automation.
"""

import argparse
from contextlib import suppress
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "lmseg: a run without a heartbeat has crashed"

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument(
        "--seconds",
        type=int,
        default=600,
        help="silence that counts as a crash; three times PREFECT_FLOWS_HEARTBEAT_FREQUENCY (180 s) or more",
    )
    told = options.parse_args()
    with suppress(ValueError):
        Automation.read(name=NAME).delete()
    Automation(
        name=NAME,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            # Other flows of the server are not ours to end.
            match_related=ResourceSpecification({"prefect.resource.id": ["prefect.tag.lmseg"]}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
            },
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=told.seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"No heartbeat for {told.seconds} s: the process is gone."
            )
        ],
    ).create()
