"""Write the JSON Schemas of the stored documents beside this file.

python docs/write_schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

from apportion.allocator import MeasuredFrontier, Plan
from apportion.sensitivity import Profile

for name, document in (("plan", Plan), ("profile", Profile), ("frontier", MeasuredFrontier)):
    text = json.dumps(document.json_schema(), indent=2, ensure_ascii=False)
    Path(__file__).with_name(f"{name}.schema.json").write_text(f"{text}\n", encoding="utf-8")
