from __future__ import annotations

import pytest

from include import platforms
from include.errors import ConfigurationError
from include.platforms.cluster import Cluster, amount

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
