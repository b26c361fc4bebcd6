"""What every HTTP service of ours needs: who is asking, how much may be sent, what is logged and counted, how errors look.

`service_app` makes the FastAPI application, `serve` runs it. A refusal is a `Refused`, whose body has the shape of OpenAI's.
"""

from taskmem.service.app import service_app
from taskmem.service.auth import bearer
from taskmem.service.limits import Limits
from taskmem.service.logs import ServiceLog
from taskmem.service.metrics import Refusals, exposition
from taskmem.service.refused import Reason, Refused
from taskmem.service.running import serve
from taskmem.service.trace import Trace, trace_of

__all__ = [
    "Limits",
    "Reason",
    "Refusals",
    "Refused",
    "ServiceLog",
    "Trace",
    "bearer",
    "exposition",
    "serve",
    "service_app",
    "trace_of",
]
