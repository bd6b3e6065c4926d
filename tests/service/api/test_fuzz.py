"""Whatever the OpenAPI document allows, and what it forbids: every answer is one it announces. `make soak`
asks for more (PACA_SOAK)."""

from __future__ import annotations

import io
import os

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode

from service import images
from service.api.app import create_app
from service.settings import Settings
from tests.soak import examples


def picture(fmt: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3)).save(buffer, fmt)
    return buffer.getvalue()


Image.init()
PICTURES = [picture(fmt) for fmt in images.FORMAT_NAMES if fmt in Image.SAVE]
for media in (*images.MEDIA_TYPES, "application/octet-stream"):
    real = st.sampled_from(PICTURES)
    schemathesis.openapi.media_type(
        media, real | real.map(lambda data: data[: len(data) // 2]) | st.binary(max_size=300)
    )

OPERATIONS = {
    result.ok().label: result.ok()
    for result in schemathesis.openapi.from_dict(create_app(Settings()).openapi()).get_all_operations()
}
BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)  # as the document allows it, and against it
# Against it only where there is a body: any text is a valid name of a model.
MODES = {
    label: BOTH if "requestBody" in operation.definition.raw else BOTH[:1]
    for label, operation in OPERATIONS.items()
}
CASES = [(label, mode) for label, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("label", "mode"), CASES, ids=[f"{label} {mode.value}" for label, mode in CASES])
def test_every_answer_is_one_the_document_announces(serving, label, mode):
    operation = OPERATIONS[label]
    announced = {int(status) for status in operation.definition.raw["responses"]}
    if mode is GenerationMode.NEGATIVE:
        announced |= {400, 404, 405}  # of the protocol and the router, before any operation is found

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        examples(200 // len(MODES[label]), 5000 // len(MODES[label])), suppress_health_check=list(HealthCheck)
    )
    def check(case):
        response = case.call(base_url=serving.url, timeout=30)
        assert response.status_code in announced, response.text
        assert not any(secret in response.text for secret in ("Traceback", "site-packages", os.getcwd()))
        if response.status_code >= 400 and not case.path.startswith("/v2"):
            assert response.headers["content-type"][0] == "application/problem+json"

    check()
    assert httpx.get(f"{serving.url}/readyz").status_code == 200
