#!/usr/bin/env bash
# uvicorn 0.54.0 on Linux: a port beyond 65,535 is taken modulo 65,536 if the host is a name, refused if it is an address, and reported as it was given.
#
# `uvicorn app:app --host localhost --port 73536` listens at 8000 and says "running on http://localhost:73536". The option has no upper bound; asyncio asks the
# resolver for a name's addresses and gets the port's low 16 bits with them, while an address goes to bind() as it is, which raises OverflowError. A port
# with a digit too many thus starts a server in good health by its own log, where nobody calls it, and can take a port meant for another one.
#
# Seen: with --host localhost and a free port plus 65,536, the server answers at the free port and names the sum in its log; with --host 127.0.0.1 the process
# ends with OverflowError. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uvicorn==0.54.0
cd "$folder"
cat > app.py <<'END'
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})
END
"$folder/venv/bin/python" - <<'END'
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version

with socket.create_server(("localhost", 0)) as free:
    port = free.getsockname()[1]
command = [sys.executable, "-m", "uvicorn", "app:app", "--lifespan", "off", "--port", str(port + 65536), "--host"]
server = subprocess.Popen([*command, "localhost"], stderr=subprocess.PIPE, text=True)
answer = None
try:
    for _ in range(150):
        try:
            answer = urllib.request.urlopen(f"http://localhost:{port}/", timeout=5).read()
            break
        except OSError:
            time.sleep(0.1)
finally:
    server.terminate()
log = server.communicate(timeout=30)[1]
refused = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, timeout=30)
last = (refused.stderr.strip().splitlines() or [""])[-1]
line = next((line for line in log.splitlines() if "running on" in line), "")
print("uvicorn", version("uvicorn"), "at", port, answer, "|", line, "|", refused.returncode, last)
sys.exit(0 if answer == b"here" and f":{port + 65536} " in line and last.startswith("OverflowError") else "changed")
END
