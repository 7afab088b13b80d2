from __future__ import annotations

import pytest
from front_end_process import Service


def test_every_reference_in_the_description_is_resolved(service: Service) -> None:
    import httpx

    document = httpx.get(f"{service.url}/openapi.json").json()
    text = str(document)
    schemas = document["components"]["schemas"]
    for name in ("ChatCompletionRequest", "CompletionRequest", "ErrorAnswer", "ChatCompletion"):
        assert f"#/components/schemas/{name}" in text
        assert name in schemas
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]
    assert document["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_described_input_and_no_odd_one_is_answered_with_5xx(service: Service) -> None:
    """Schemathesis makes requests from the description, valid and broken ones."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    # Draining would end the service; it is off here and answers 404.
    num_cases = 0

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @hypothesis.settings(
                max_examples=60,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                nonlocal num_cases
                num_cases += 1
                response = case.call(timeout=30)
                assert response.status_code < 500, response.text
                case.validate_response(response, checks=[not_a_server_error])
                if response.status_code >= 400:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}

            try:
                check()
            except hypothesis.errors.Unsatisfiable:
                continue  # nothing to break in a route without input
    assert num_cases > 300
    assert service.chat(max_tokens=1).status_code == 200
