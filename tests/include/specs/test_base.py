from __future__ import annotations

import pytest

from include.errors import ConfigurationError
from include.specs import config_class, job_names, spec_class
from include.specs.base import NOT_IDENTITY, Artifact, JobSpec, identity

FIELDS_THAT_CANNOT_CHANGE_A_RESULT = {
    "finetune": {
        *("activation_checkpointing", "checkpoint_every", "hang_seconds"),
        *("local_batch_size", "nodes", "processes"),
    },
    "ingest": {"announced", "settle_seconds"},
}


@pytest.mark.parametrize("job", job_names())
def test_every_job_has_its_model(job):
    spec = spec_class(job)
    assert issubclass(spec, JobSpec)
    assert spec.model_fields["job"].default == job
    assert spec.kind in ("job", "effect")


@pytest.mark.parametrize("job", job_names())
def test_what_is_left_out_of_the_identity_is_listed_here(job):
    marked = {name for name, field in config_class(job).model_fields.items() if NOT_IDENTITY in field.metadata}
    assert marked == FIELDS_THAT_CANNOT_CHANGE_A_RESULT.get(job, set())


def test_where_an_input_lies_is_not_its_identity():
    here = Artifact(uri="file:///a/x", digest="0" * 64)
    there = Artifact(uri="s3://b/x", digest="0" * 64)
    other = Artifact(uri="file:///a/x", digest="1" * 64)
    assert identity(here) == identity(there) != identity(other)


def test_inputs_that_a_job_does_not_name_are_its_identity_too():
    def identity_of(**inputs):
        return identity(spec_class("report").model_fields["inputs"].annotation.model_validate(inputs))

    made = {"uri": "file:///a/x", "digest": "0" * 64}
    assert identity_of(teacher=made)["teacher"] == made
    assert identity_of(teacher=made) != identity_of(student=made)


def test_an_unknown_job_is_answered_with_the_nearest_or_the_known_ones():
    with pytest.raises(ConfigurationError, match="no job 'xyz': choose one of .*finetune"):
        spec_class("xyz")
    with pytest.raises(ConfigurationError, match="no job 'finetun': did you mean 'finetune'"):
        spec_class("finetun")
