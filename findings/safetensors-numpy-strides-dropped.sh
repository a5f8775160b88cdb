#!/usr/bin/env bash
# safetensors 0.8.0 saves numpy arrays that are not C-contiguous with their values in other places: `load(save(x))` is not `x`. 0.7.0 saved them rightly.
#
# safetensors.numpy hands the array's address and shape to the writer and takes no notice of its strides, so that the bytes go to the file in the order in
# which they lie in memory. Shape and dtype of what comes back are right, and no message is printed. Transposes, Fortran order (as np.asfortranarray, and
# the results of some solvers, have it), steps and reversed axes are concerned: a projection that is saved as `weight.T`, every second column of an
# embedding, or scikit-learn's components. A step even saves values that the view does not hold. safetensors.torch refuses such tensors with an error.
# Save np.ascontiguousarray(x).
#
# Seen, of [[0, 1, 2], [3, 4, 5]]: by 0.7.0 all four come back equal; by 0.8.0 the transpose comes back as [[0, 1], [2, 3], [4, 5]], columns 0 and 2 as
# [[0, 1], [2, 3]], Fortran order as [[0, 3, 1], [4, 2, 5]], and only the plain array equals what was saved. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cat > "$folder/trip.py" <<'END'
import json
import numpy as np
from safetensors.numpy import load, save

plain = np.arange(6, dtype=np.float32).reshape(2, 3)
views = {"plain": plain, "transpose": plain.T, "step": plain[:, ::2], "fortran": np.asfortranarray(plain)}
back = {name: load(save({"x": view}))["x"] for name, view in views.items()}
print(json.dumps({name: [bool(np.array_equal(views[name], found)), found.tolist()] for name, found in back.items()}))
END
trip() {
    "$folder/venv/bin/pip" install -q --disable-pip-version-check "safetensors==$1" numpy==2.4.6
    "$folder/venv/bin/python" "$folder/trip.py"
}
before=$(trip 0.7.0)
now=$(trip 0.8.0)
"$folder/venv/bin/python" - "$before" "$now" <<'END'
import json
import sys

before, now = (json.loads(text) for text in sys.argv[1:])
print("0.7.0", before, "\n0.8.0", now)
equal = {name for name, (same, _) in now.items() if same}
expected = all(same for same, _ in before.values()) and equal == {"plain"}
expected = expected and now["transpose"][1] == [[0, 1], [2, 3], [4, 5]] and now["step"][1] == [[0, 1], [2, 3]]
sys.exit(0 if expected and now["fortran"][1] == [[0, 3, 1], [4, 2, 5]] else "changed")
END
