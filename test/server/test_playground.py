"""The pages in a real headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fakes import count_up, say
from front_end_process import Service

pytestmark = pytest.mark.needs("chromium", "chromedriver")

webdriver = pytest.importorskip("selenium.webdriver")
StaleElementReferenceException = pytest.importorskip(
    "selenium.common.exceptions"
).StaleElementReferenceException
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

STATIC = Path(__file__).resolve().parents[2] / "chitu_like" / "server" / "static"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    import shutil

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, service: Service) -> webdriver.Chrome:
    browser.get(service.url)
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get(service.url)
    browser.get_log("browser")
    return browser


def wait(page: webdriver.Chrome, is_true: Callable[[webdriver.Chrome], object]) -> None:
    # A frame that was asked for before the end draws once more, and what was found is another's.
    redrawn = [StaleElementReferenceException]
    WebDriverWait(page, 15, poll_frequency=0.02, ignored_exceptions=redrawn).until(is_true)


def text_of(page: webdriver.Chrome, selector: str) -> str:
    return page.find_element(By.CSS_SELECTOR, selector).text.replace("\n", " ")


def complaints(page: webdriver.Chrome) -> list[dict[str, object]]:
    """What the console shows, without Chromium's recommendations, which come when it is idle."""
    return [entry for entry in page.get_log("browser") if entry["source"] != "recommendation"]


def last_answer(page: webdriver.Chrome) -> str:
    answers = page.find_elements(By.CSS_SELECTOR, ".message.assistant .text")
    return answers[-1].text if answers else ""


def has_finished(page: webdriver.Chrome) -> bool:
    return page.find_element(By.ID, "send").is_displayed()


def ask(page: webdriver.Chrome, text: str) -> None:
    page.find_element(By.ID, "prompt").send_keys(text + "\n")


def test_a_message_is_sent_and_the_answer_streams(page: webdriver.Chrome, service: Service) -> None:
    text = "Once upon a time there was a **brave** boat."
    service.engine.script = say(text)
    service.engine.delay_s = 0.02
    ask(page, "Tell me a story")
    seen: set[str] = set()

    def note(page: webdriver.Chrome) -> bool:
        seen.add(last_answer(page))
        return last_answer(page) == text.replace("*", "") and has_finished(page)

    wait(page, note)
    assert len(seen) > 4, "the answer came in one piece"
    wait(page, lambda page: text_of(page, ".text strong") == "brave")
    pattern = r"\d+ ms to first token .*\d tokens/s .*45 tokens"
    wait(page, lambda page: re.search(pattern, text_of(page, ".facts")))
    ask(page, "Another")
    service.engine.wait_until(lambda engine: len(engine.added) == 2)
    conversation = bytes(t for t in service.engine.added[-1].prompt_token_ids if t < 256).decode()
    assert text in conversation  # the model sees its own answer
    wait(page, has_finished)
    assert complaints(page) == []


def test_what_the_model_writes_never_becomes_markup(
    page: webdriver.Chrome, service: Service
) -> None:
    service.engine.script = say(
        "<img src=x onerror=\"document.title='bad'\"> <b>x</b> `<i>` [a](javascript:1)"
    )
    ask(page, "go")
    wait(page, lambda page: has_finished(page) and "javascript" in last_answer(page))
    assert page.find_elements(By.CSS_SELECTOR, ".text img, .text b, .text i, .text a") == []
    assert page.title == "chitu_like playground"


def test_the_stop_button_frees_the_request_and_keeps_the_text(
    page: webdriver.Chrome, service: Service
) -> None:
    service.engine.script = count_up
    service.engine.delay_s = 0.01
    ask(page, "count")
    wait(page, lambda page: len(last_answer(page)) > 5)
    page.find_element(By.ID, "stop").click()
    service.engine.wait_until(lambda engine: engine.num_open == 0)
    wait(page, has_finished)
    assert last_answer(page).startswith("012345")
    wait(page, lambda page: "stopped" in text_of(page, ".facts"))
    page.find_element(By.ID, "reset").click()
    assert page.find_elements(By.CSS_SELECTOR, ".message") == []


def test_controls_reach_the_request_and_errors_are_shown(
    page: webdriver.Chrome, service: Service
) -> None:
    for field, value in (
        ("system", "Be brief."),
        ("top-k", "5"),
        ("max-tokens", "3"),
        ("seed", "9"),
    ):
        page.find_element(By.ID, field).send_keys(value)
    ask(page, "hi")
    wait(page, lambda page: has_finished(page) and last_answer(page) == "Hel")
    params = service.engine.added[-1].params
    assert (params.top_k, params.max_tokens, params.seed, params.temperature) == (5, 3, 9, 1.0)
    assert b"Be brief." in bytes(t for t in service.engine.added[-1].prompt_token_ids if t < 256)
    page.find_element(By.ID, "max-tokens").send_keys("000000")
    ask(page, "more")
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, ".error"))
    assert "context" in page.find_element(By.CSS_SELECTOR, ".error").text


def test_the_documentation_lists_every_route(page: webdriver.Chrome, service: Service) -> None:
    page.get(f"{service.url}/docs")
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, ".operation"))
    paths = {node.text for node in page.find_elements(By.CSS_SELECTOR, ".path")}
    assert set(httpx.get(f"{service.url}/openapi.json").json()["paths"]) == paths
    operation = page.find_element(By.XPATH, "//details[.//span[text()='/tokenize']]")
    operation.click()
    operation.find_element(By.CSS_SELECTOR, "button.run").click()
    wait(page, lambda page: '"count": 6' in operation.find_element(By.CSS_SELECTOR, "pre").text)
    assert complaints(page) == []


def test_the_pages_name_no_other_host() -> None:
    for file in STATIC.iterdir():
        hosts = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", file.read_text())
        assert [host for host in hosts if "www.w3.org" not in host] == [], file.name
