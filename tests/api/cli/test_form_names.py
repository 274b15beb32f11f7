"""MODEL@TYPE, as `llmctl` prints it, is understood wherever a model is named."""

from real_daemon import Llmd, llmctl

FORM = "smol@Q4_1"


def said(llmd: Llmd, *arguments: str, code: int = 0) -> str:
    done = llmctl(llmd.state / "admin.sock", *arguments)
    assert done.exit_code == code, done.output
    return done.stdout + done.stderr


def test_a_form_is_planned_shown_verified_and_deployed_by_its_name(llmd: Llmd) -> None:
    assert said(llmd, "plan", FORM).startswith(f"{FORM}: ")
    assert llmd.llmctl("plan", "smol@q4_1")["form"] == FORM
    shown, model = llmd.llmctl("model", "show", FORM), llmd.llmctl("model", "show", "smol")
    assert shown["name"] == FORM and shown["digest"] == model["digest"] and shown["deployed"]
    assert shown["info"]["form_of"] == "smol" and shown["info"]["conversations"] == model["info"]["conversations"]
    assert said(llmd, "model", "verify", FORM) == f"{FORM} is as it was imported\n"
    assert said(llmd, "model", "template", FORM) == said(llmd, "model", "template", "smol")
    assert f"{FORM} is ready" in said(llmd, "deploy", FORM)
    assert f"{FORM} writes " in said(llmd, "model", "syntax", FORM, "auto")
    assert said(llmd, "audit", "query", "--model", FORM, "--limit", "3") != ""
    said(llmd, "deploy", "smol")


def test_a_form_that_there_is_not_is_told_as_that(llmd: Llmd) -> None:
    for line in ("plan", "model show", "model verify", "model template", "model rm", "deploy"):
        words = line.split()
        assert "there is no form of smol of that name; there is Q4_1" in said(llmd, *words, "smol@Q9", code=1), line
        assert "there is no imported model of that name" in said(llmd, *words, "none@Q4_1", code=1)
    refused = said(llmd, "undeploy", "smol@Q9", code=1)
    assert "there is no deployed form of smol of that name; there is smol@Q4_1" in refused
    assert "there is no deployed model" in said(llmd, "undeploy", "none@Q4_1", code=1)


def test_where_only_a_model_will_do_that_is_said(llmd: Llmd) -> None:
    assert "llmctl model rename smol NEW" in said(llmd, "model", "rename", FORM, "other", code=1)
    assert "are made of what was imported, smol" in said(llmd, "model", "quantize", FORM, "--type", "Q8_0", code=1)
    assert "are made of what was imported, smol" in said(llmd, "model", "quantize", FORM, "--dry-run", code=1)
    assert f"{FORM} serves: llmctl undeploy smol" in said(llmd, "model", "rm", FORM, code=1)
    assert "give one of them" in said(llmd, "deploy", FORM, "--form", "Q8_0", code=1)
    assert "there is no form" in said(llmd, "model", "quantize", "smol@Q9", "--type", "Q8_0", code=1)


def test_a_client_may_name_the_form_that_serves(llmd: Llmd) -> None:
    body = {"model": FORM, "prompt": "The sky is", "max_tokens": 4, "temperature": 0}
    status, headers, answer = llmd.post("/v1/completions", body)
    plain = llmd.post("/v1/completions", {**body, "model": "smol"})[2]
    assert status == 200 and answer["choices"] == plain["choices"] and answer["model"] == "smol"
    assert llmd.post("/v1/completions", {**body, "model": "smol@q4_1"})[0] == 200
    admitted = llmd.llmctl("audit", "query", "--kind", "admit", "--limit", "1", "--model", "smol")
    assert admitted[0]["body"]["model"] == "smol"
    another, none = (
        "this form of smol is not deployed; smol@Q4_1 is",
        "there is no deployed model of that name; there is smol",
    )
    told = {"smol@Q8_0": another, "smol@x@Q4_1": another, "smol@": none, "@Q4_1": none, "none@Q4_1": none}
    for other, words in told.items():
        status, _, answer = llmd.post("/v1/completions", {**body, "model": other})
        assert (status, answer["error"]["code"], answer["error"]["message"]) == (404, "model_not_found", words)
    assert llmd.get(f"/v1/models/{FORM}")[2]["id"] == "smol"
    assert llmd.get("/v1/models/smol@Q8_0")[0] == 404


def test_a_context_of_0_is_the_longest(llmd: Llmd) -> None:
    trained = llmd.llmctl("model", "show", "smol")["info"]["context_length"]
    assert llmd.llmctl("plan", "smol", "--ctx", "0", "--slots", "1")["context"] == trained
    refused = said(llmd, "plan", "smol", "--ctx", "255", code=1)
    assert f"ctx takes 256 to {trained} for this model, or 0: " in refused
    assert "ctx" in said(llmd, "plan", "smol", "--ctx", "-1", code=1)
