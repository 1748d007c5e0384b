"""The raw file, overridden by variables `FUPLOADER_PIPELINES__NAME__SETTING` of the environment.

Apart from `loading`, which imports it only where there are such variables: pydantic-settings takes
as long to load as everything else of a configuration.
"""

from __future__ import annotations

from typing import Any

from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fuploader_dagster.errors import ConfigError


class _Overridden(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="FUPLOADER_", env_nested_delimiter="__", extra="allow"
    )

    pipelines: dict[str, dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)


def overridden(raw: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The values of each pipeline, and those beside `pipelines`. Raises `ValidationError` of
    pydantic, and `ConfigError`."""
    try:
        settings = _Overridden(**raw)
    except SettingsError as error:
        raise ConfigError(
            f"FUPLOADER_PIPELINES in the environment cannot be read: {error}",
            hint="unset it, or set one setting: FUPLOADER_PIPELINES__DOCUMENTS__SEAL_MESSAGES",
        ) from None
    return settings.pipelines, settings.model_extra or {}
