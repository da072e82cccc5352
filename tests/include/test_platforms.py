from __future__ import annotations

import re

import pytest

from include import platforms
from include.errors import ConfigurationError
from include.home import PROJECT
from include.platforms.cluster import Cluster, Size, amount

REST = """
operator: operators.LocalJobOperator
arrivals: {folder: /x, recipe: a/b}
serving: {url: 'http://x', controller_url: 'http://y', token_file: /t}
"""
"""What a platform has to say beside its name and its store."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "_FOLDER", tmp_path)
    platforms.load_platform.cache_clear()
    yield tmp_path
    platforms.load_platform.cache_clear()


def test_the_laptop_keeps_everything_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path))
    platforms.load_platform.cache_clear()
    laptop = platforms.load_platform("laptop")
    platforms.load_platform.cache_clear()
    assert laptop.store == f"file://{tmp_path}/store"
    assert laptop.arrivals.folder == f"{tmp_path}/inbox"
    assert laptop.environment["HF_HUB_OFFLINE"] == "1"


PLATFORMS = sorted(path.stem for path in (PROJECT / "include" / "platforms").glob("*.yaml"))


def injected(service):
    """What Kubernetes sets in each pod of a namespace that has this Service, for the links that Docker once had."""
    name, address = service.upper().replace("-", "_"), "10.0.0.1"
    link = f"{name}_PORT_80_TCP"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": "80",
        f"{name}_SERVICE_PORT_HTTP": "80",
        f"{name}_PORT": f"tcp://{address}:80",
        link: f"tcp://{address}:80",
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": "80",
        f"{link}_ADDR": address,
    }


def services():
    """Every name of a Service whose variables can be those that a file of the project names."""
    files = (
        path for folder in ("dags", "include", "jobs", "operators", "plugins") for path in (PROJECT / folder).rglob("*")
    )
    texts = (path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".yaml"))
    names = {name for text in texts for name in re.findall(r"\bANEMONE(?:_[A-Z0-9]+)*\b", text)}
    parts = (name.lower().split("_") for name in names)
    return {"-".join(words[:length]) for words in parts for length in range(1, len(words) + 1)}


@pytest.mark.parametrize("name", [name for name in PLATFORMS if name != "laptop"])
def test_a_service_called_like_us_changes_no_platform(monkeypatch, name):
    for variable in ("STORE", "S3_REGION", "JOBS_IMAGE", "SERVING_IMAGE", "NEMO_IMAGE"):
        monkeypatch.setenv(f"ANEMONE_{variable}", "a@sha256:" + "0" * 64)
    platforms.load_platform.cache_clear()
    before = platforms.load_platform(name)
    assert {"anemone", "anemone-metrics", "anemone-router", "anemone-store"} <= services()
    for service in services():
        for variable, value in injected(service).items():
            monkeypatch.setenv(variable, value)
    platforms.load_platform.cache_clear()
    assert platforms.load_platform(name) == before
    platforms.load_platform.cache_clear()


@pytest.mark.parametrize("name", [name for name in PLATFORMS if name != "laptop"])
def test_no_platform_but_the_laptops_names_the_laptops_variables(name):
    named = set(re.findall(r"\$\{(\w+)", (PROJECT / "include" / "platforms" / f"{name}.yaml").read_text()))
    assert not named & set(platforms._OF_THE_LAPTOP)


def test_the_laptop_says_which_variable_of_its_own_is_no_port(monkeypatch):
    monkeypatch.setenv("ANEMONE_PORT", "tcp://10.0.0.1:80")
    platforms.load_platform.cache_clear()
    with pytest.raises(ConfigurationError, match=r"laptop\.yaml takes ANEMONE_ROUTER_PORT .*ANEMONE_PORT is 'tcp://10"):
        platforms.load_platform("laptop")
    platforms.load_platform.cache_clear()


def test_a_platform_of_a_users_own_may_be_a_copy_of_the_laptops(folder, monkeypatch):
    text = (PROJECT / "include" / "platforms" / "laptop.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace("name: laptop", "name: mine"))
    monkeypatch.setenv("ANEMONE_PORT", "9000")
    assert platforms.load_platform("mine").serving.controller_url == "http://127.0.0.1:9012"


def test_a_platform_that_cannot_be_read_is_one_clear_error(folder):
    (folder / "odd.yaml").write_text("name: odd\nstore: [\n")
    with pytest.raises(
        ConfigurationError, match=r"the platform odd\.yaml cannot be read \(no YAML: line 3, column 1: "
    ):
        platforms.load_platform("odd")


@pytest.mark.remedy("add … to cluster.images")
def test_a_job_without_an_image_says_which_one_is_lacking():
    sizes = {"small": Size(cpu="1", memory="1Gi")}
    cluster = Cluster(namespace="n", images={}, sizes=sizes, stages={"default": "small"})
    with pytest.raises(ConfigurationError, match=r"no image for the job finetune: add nemo to cluster\.images"):
        cluster.image("finetune", "nemo")
    assert cluster.model_copy(update={"images": {"nemo": "nemo:1"}}).image("finetune", "nemo") == "nemo:1"


def test_an_unknown_platform_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="ANEMONE_PLATFORM is 'moon': choose one of .*laptop"):
        platforms.load_platform("moon")


def test_a_wrong_key_and_a_missing_variable_are_named(folder):
    (folder / "odd.yaml").write_text(f"name: odd\nstore: s3://b/x\nspeed: 1\n{REST}")
    with pytest.raises(ConfigurationError, match=r"odd\.yaml: speed: Extra inputs"):
        platforms.load_platform("odd")
    (folder / "needy.yaml").write_text("name: needy\nstore: s3://${NO_SUCH_BUCKET}/x")
    with pytest.raises(ConfigurationError, match=r"needy\.yaml needs the environment variable NO_SUCH_BUCKET"):
        platforms.load_platform("needy")


@pytest.mark.parametrize(
    ("former", "says"),
    [
        ("local", "`operator: operators.LocalJobOperator`"),
        ("kubernetes", "`operator: operators.DistributedJobOperator`"),
        ("[slurm]", "`operator: <module>.<class>`"),
    ],
)
def test_a_platform_of_an_older_version_is_told_the_new_key(folder, former, says):
    (folder / "mine.yaml").write_text(f"name: mine\nrunner: {former}\nstore: /x\n{REST}".replace("\noperator", "\n#"))
    with pytest.raises(ConfigurationError) as refusal:
        platforms.load_platform("mine")
    assert str(refusal.value).startswith("mine.yaml: the key runner is now operator: write ")
    assert says in str(refusal.value)


def test_an_operator_is_an_import_path(folder):
    (folder / "mine.yaml").write_text(f"name: mine\nstore: /x\n{REST.replace('operators.', 'os; ')}")
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: operator: String should match"):
        platforms.load_platform("mine")


CLUSTER = {
    "namespace": "n",
    "images": {"jobs": "jobs:1", "finetune": "nemo:1"},
    "service_account": {"jobs": "workers"},
    "sizes": {"default": {"cpu": "1", "memory": "1Gi"}, "gpu8": {"cpu": "88", "memory": "1000Gi", "gpus": 8}},
    "stages": {"default": "default", "finetune": "gpu8"},
}


def test_a_variable_may_have_a_value_for_when_it_is_not_set(folder, monkeypatch):
    (folder / "any.yaml").write_text(f"name: any\nstore: ${{ANEMONE_TEST_STORE:-s3://bucket/x}}\n{REST}")
    for given, expected in ((None, "s3://bucket/x"), ("", "s3://bucket/x"), ("s3://other/y", "s3://other/y")):
        if given is not None:
            monkeypatch.setenv("ANEMONE_TEST_STORE", given)
        platforms.load_platform.cache_clear()
        assert platforms.load_platform("any").store == expected


@pytest.mark.parametrize("given", ["4711", "on", "1e3", "2026-11-21", "null", "a: b", "#1", "0x1f"])
def test_what_a_variable_holds_is_text_and_a_number_where_the_key_asks_for_one(folder, monkeypatch, given):
    (folder / "any.yaml").write_text(
        "name: ${ANEMONE_TEST_TEXT}  # of ${NO_SUCH_VARIABLE}\nstore: /x\n"
        "store_connection: ${ANEMONE_TEST_CONNECTION:-null}\nenvironment: \n  A: x-${ANEMONE_TEST_TEXT}\n"
        "grace_seconds: ${ANEMONE_TEST_NUMBER:-7}\nretention:\n  delete: ${ANEMONE_TEST_SWITCH:-false}\n" + REST
    )
    monkeypatch.setenv("ANEMONE_TEST_TEXT", given)
    platform = platforms.load_platform("any")
    assert (platform.name, platform.environment["A"]) == (given, f"x-{given}")
    assert (platform.store_connection, platform.grace_seconds, platform.retention.delete) == (None, 7, False)


def test_every_shipped_platform_takes_a_cost_centre_that_is_a_number(monkeypatch):
    for name in ("STORE", "S3_REGION", "JOBS_IMAGE", "SERVING_IMAGE", "NEMO_IMAGE"):
        monkeypatch.setenv(f"ANEMONE_{name}", "a@sha256:" + "0" * 64)
    monkeypatch.setenv("ANEMONE_COST_CENTRE", "4711")
    monkeypatch.delenv("ANEMONE_STORE_CONNECTION", raising=False)
    for name in ("eks-a100", "eks-h100"):
        platforms.load_platform.cache_clear()
        platform = platforms.load_platform(name)
        assert platform.cluster.labels["cost-centre"] == "4711" and platform.store_connection is None
    platforms.load_platform.cache_clear()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stages": {"finetune": "gpu8"}}, "stages needs the key default"),
        ({"stages": {"default": "huge"}}, "stages name the size 'huge': choose one of default, gpu8"),
        ({"pin_images": True}, "the image 'jobs:1' has no digest"),
        ({"labels": {"cost-centre": "research & development"}}, "'research & development' is no value of a label"),
        ({"sizes": {"default": {"cpu": "one", "memory": "1Gi"}}}, "'one' is no Kubernetes quantity"),
    ],
)
def test_a_cluster_that_cannot_be_used_says_why(change, says):
    with pytest.raises(ValueError, match=says):
        Cluster.model_validate({**CLUSTER, **change})


@pytest.mark.parametrize(
    ("quantity", "number"), [("500m", 0.5), ("4", 4), ("1.5Gi", 1.5 * 2**30), ("3k", 3000), ("2Ti", 2**41)]
)
def test_a_quantity_is_a_number(quantity, number):
    assert amount(quantity) == number


def test_a_job_goes_before_its_environment():
    cluster = Cluster.model_validate(CLUSTER)
    assert [cluster.image(job, "jobs") for job in ("curate", "finetune")] == ["jobs:1", "nemo:1"]
    assert cluster.account("curate", "jobs") == "workers"
    assert cluster.account("engine", "serving") is None
    with pytest.raises(ConfigurationError, match=r"no image for the job engine: add serving to cluster\.images"):
        cluster.image("engine", "serving")


def test_a_recipes_size_goes_before_the_platforms():
    cluster = Cluster.model_validate(CLUSTER)
    assert [cluster.size("finetune").gpus, cluster.size("curate").gpus, cluster.size("curate", "gpu8").gpus] == [
        8,
        0,
        8,
    ]
    with pytest.raises(ConfigurationError, match="asks for curate in pods of size 'gpu80'.*did you mean 'gpu8'"):
        cluster.size("curate", "gpu80")
