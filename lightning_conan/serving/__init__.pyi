from .application import create_app
from .engine import Engine
from .limits import RequestLimits
from .metrics import Metrics
from .server import DrainingServer, run_server
from .service import Access, Service
from .settings import EngineSettings

__all__ = [
    "Access",
    "DrainingServer",
    "Engine",
    "EngineSettings",
    "Metrics",
    "RequestLimits",
    "Service",
    "create_app",
    "run_server",
]
