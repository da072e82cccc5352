"""Validate tables against a suite, with Great Expectations in memory and Data Docs as the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults
from great_expectations.exceptions import GreatExpectationsError
from great_expectations.expectations.expectation import Expectation as GxExpectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

from include.errors import ConfigurationError
from include.specs.check import Expectation, Suite
from jobs.check.findings import Finding, finding

SHOWN_ROWS = 10
"""Rows that miss an expectation, shown in Data Docs."""


def validate(
    suite: Suite, tables: dict[str, pd.DataFrame], parameters: dict[str, Any], data_docs: Path
) -> list[Finding]:
    """Return the finding of each expectation of `suite`, in the suite's order.

    Args:
        tables: by the names that `meta.table` may have; each has a column `id`.
        parameters: values for `{"$PARAMETER": name}`.
        data_docs: folder for the HTML report.

    Raises:
        ConfigurationError: an expectation that Great Expectations does not know, or that names no column of its table.
    """
    _check_columns(suite, tables)
    context = _context(data_docs)
    source = context.data_sources.add_pandas("curated")
    outcomes: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        chosen = [_expectation(item, suite) for item in suite.expectations if item.meta.table == name]
        if not chosen:
            continue
        part = context.suites.add(gx.ExpectationSuite(name=f"{suite.name}-{name}", expectations=chosen))
        batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        validation = context.validation_definitions.add(
            gx.ValidationDefinition(name=f"{suite.name}-{name}", data=batches, suite=part)
        )
        checkpoint = gx.Checkpoint(
            name=f"{suite.name}-{name}",
            validation_definitions=[validation],
            actions=[UpdateDataDocsAction(name="data_docs", site_names=["data_docs"])],
            result_format={
                "result_format": "SUMMARY",
                "partial_unexpected_count": SHOWN_ROWS,
                "unexpected_index_column_names": ["id"],
            },
        )
        run = checkpoint.run(batch_parameters={"dataframe": table}, expectation_parameters=parameters)
        (validated,) = run.run_results.values()
        for result in validated.results:
            outcomes[result.expectation_config.meta["name"]] = result.to_json_dict()
    return [finding(item, outcomes[item.meta.name]) for item in suite.expectations]


def _context(data_docs: Path) -> Any:
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(data_docs)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = DataContextConfig(
        analytics_enabled=False,
        data_docs_sites={"data_docs": site},
        progress_bars={"globally": False},
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _expectation(item: Expectation, suite: Suite) -> GxExpectation:
    # One by one: a suite built from dictionaries drops what it does not know, and only logs it.
    try:
        return ExpectationConfiguration(**item.model_dump()).to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"suite {suite.name}: {item.meta.name} is not a valid {item.type} ({_first_line(error)}); correct its type "
            "and kwargs"
        ) from None


def _check_columns(suite: Suite, tables: dict[str, pd.DataFrame]) -> None:
    names: set[str] = set()
    for item in suite.expectations:
        if item.meta.name in names:
            raise ConfigurationError(f"suite {suite.name}: two expectations are named {item.meta.name}; rename one")
        names.add(item.meta.name)
        column = item.kwargs.get("column")
        columns = tables[item.meta.table].columns
        if column is not None and column not in columns:
            raise ConfigurationError(
                f"suite {suite.name}: {item.meta.name} looks at column {column} of table {item.meta.table}, which has "
                f"{', '.join(columns)}"
            )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
