"""Settings: from the environment and a file, and every problem at once."""

from pathlib import Path

import pytest

from libs.events import ids
from libs.settings import SettingsError, load_settings

KEY = "sk-test-0123456789"


def test_a_provider_has_its_settings_by_name() -> None:
    settings = load_settings(
        {
            "FLOWLEDGER_PROVIDER_OPENAI_API_KEY": KEY,
            "FLOWLEDGER_PROVIDER_MY_AZURE_BASE_URL": "https://x.example/openai/v1",
            "FLOWLEDGER_PROVIDER_MY_AZURE_AUTH": "api-key",
            "FLOWLEDGER_PROVIDER_MY_AZURE_MODELS": "gpt-4o=chat-eu; gpt-4o-mini = small",
        },
        None,
    )
    assert set(settings.providers) == {"OPENAI", "MY_AZURE"}
    assert settings.providers["OPENAI"].api_key == KEY
    mine = settings.providers["MY_AZURE"]
    assert (mine.base_url, mine.auth) == ("https://x.example/openai/v1", "api-key")
    assert mine.models == {"gpt-4o": "chat-eu", "gpt-4o-mini": "small"}


def test_what_files_a_provider_takes_is_a_list_of_types_and_parts() -> None:
    def files(said: str) -> object:
        return load_settings({"FLOWLEDGER_PROVIDER_A_FILES": said}, None).providers["A"].files

    assert files("image; audio=audio_url") == {"image": "image_url", "audio": "audio_url"}
    assert files("none") == {}
    for wrong in ("film", "audio=image_url"):
        with pytest.raises(SettingsError, match="FLOWLEDGER_PROVIDER_A_FILES"):
            files(wrong)


def test_contexts_of_models_are_counts_by_name() -> None:
    given = {"FLOWLEDGER_PROVIDER_A_CONTEXT_TOKENS": "qwen:7b=8192;*=4096"}
    assert load_settings(given, None).providers["A"].context_tokens == {"qwen:7b": 8192, "*": 4096}
    with pytest.raises(SettingsError, match=r"FLOWLEDGER_PROVIDER_A_CONTEXT_TOKENS.*many"):
        load_settings({"FLOWLEDGER_PROVIDER_A_CONTEXT_TOKENS": "qwen=many"}, None)


def test_a_key_can_come_from_a_file_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    from_file = {"FLOWLEDGER_PROVIDER_OPENAI_API_KEY_FILE": str(tmp_path / "key")}
    assert load_settings(from_file, None).providers["OPENAI"].api_key == KEY
    both = {**from_file, "FLOWLEDGER_PROVIDER_OPENAI_API_KEY": "other"}
    assert load_settings(both, None).providers["OPENAI"].api_key == "other"


def test_settings_of_an_env_file_are_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# keys\nFLOWLEDGER_PROVIDER_OPENAI_API_KEY='sk-1'\nFLOWLEDGER_MODELS=offline\nX=1\n"
    )
    settings = load_settings({"FLOWLEDGER_MODELS": "configured"}, tmp_path / ".env")
    assert (settings.providers["OPENAI"].api_key, settings.models) == ("sk-1", "configured")


def test_every_problem_is_said_at_once_and_no_key_is(tmp_path: Path) -> None:
    environ = {
        "FLOWLEDGER_PARTITIONS": "none",
        "FLOWLEDGER_KAFKA_OPTIONS": "security.protocol",
        "FLOWLEDGER_PROVIDER_A_AUTH": "basic",
        "FLOWLEDGER_PROVIDER_A_API_KEY": KEY,
        "FLOWLEDGER_PROVIDER_B_API_KEY_FILE": str(tmp_path / "missing"),
        "FLOWLEDGER_PROVIDER_B_MODELS": "gpt-4o",
        "FLOWLEDGER_PROVIDER_B_TIMEOUT_S": "soon",
        "FLOWLEDGER_PROVIDER_C_BASE_URL": "localhost:8000/v1",
    }
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, None)
    for name in ("PARTITIONS", "KAFKA_OPTIONS", "PROVIDER_A_AUTH", "PROVIDER_B_API_KEY_FILE", "PROVIDER_B_MODELS"):
        assert f"FLOWLEDGER_{name}" in str(caught.value)
    assert "FLOWLEDGER_PROVIDER_B_TIMEOUT_S" in str(caught.value)
    assert "FLOWLEDGER_PROVIDER_C_BASE_URL: expected a URL with http:// or https://" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_representation_of_settings_shows_no_secret() -> None:
    secrets = ("ADMIN_TOKEN", "SECRET_KEY", "DATABASE_URL", "PROVIDER_OPENAI_API_KEY")
    settings = load_settings({f"FLOWLEDGER_{name}": f"hidden-{name}" for name in secrets}, None)
    assert "hidden" not in repr(settings)


def test_a_bucket_has_its_settings_and_needs_its_keys() -> None:
    given = {"FLOWLEDGER_S3_BUCKET": "b/p", "FLOWLEDGER_S3_ACCESS_KEY": "k", "FLOWLEDGER_S3_SECRET_KEY": KEY}
    found = load_settings(given, None)
    assert found.s3 is not None
    assert (found.s3.endpoint, found.s3.region) == ("https://s3.us-east-1.amazonaws.com", "us-east-1")
    assert KEY not in repr(found)
    assert load_settings({}, None).s3 is None
    with pytest.raises(SettingsError, match=r"S3_ACCESS_KEY(.|\n)*S3_ENDPOINT"):
        load_settings({"FLOWLEDGER_S3_BUCKET": "b", "FLOWLEDGER_S3_ENDPOINT": "minio:9000"}, None)


def test_limits_are_whole_numbers() -> None:
    found = load_settings({"FLOWLEDGER_MAX_APP_RUNS": "5", "FLOWLEDGER_UPLOAD_BLOCKED": "exe, .BAT"}, None)
    assert (found.max_app_runs, found.max_runs, found.upload_blocked) == (5, 0, ("exe", "bat"))
    with pytest.raises(SettingsError, match="FLOWLEDGER_MAX_RUNS"):
        load_settings({"FLOWLEDGER_MAX_RUNS": "-1"}, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "nan"),
        ("PARTITIONS", "inf"),
        ("PARTITIONS", "4097"),
        ("PARTITIONS", "2.5"),
        ("MAX_TIME_S", "nan"),
        ("MAX_TIME_S", "inf"),
        ("REPLICATION", "0"),
    ],
)
def test_a_number_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"FLOWLEDGER_{name}: expected .*{value!r}"):
        load_settings({f"FLOWLEDGER_{name}": value}, None)


def test_there_are_no_more_partitions_than_a_run_id_can_name() -> None:
    assert load_settings({"FLOWLEDGER_PARTITIONS": str(ids.MAX_PARTITIONS)}, None).partitions == ids.MAX_PARTITIONS
    with pytest.raises(SettingsError, match="PARTITIONS"):
        load_settings({"FLOWLEDGER_PARTITIONS": str(ids.MAX_PARTITIONS + 1)}, None)


def test_a_line_of_an_env_file_that_sets_nothing_is_named_without_its_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OTHER\nexport FLOWLEDGER_MODELS=offline\nFLOWLEDGER_ADMIN_TOKEN: {KEY}\nX Y\n")
    with pytest.raises(SettingsError, match=r"\.env, line 3: FLOWLEDGER_ADMIN_TOKEN: expected NAME=VALUE") as caught:
        load_settings({}, tmp_path / ".env")
    assert KEY not in str(caught.value)
    (tmp_path / ".env").write_text(f"FLOWLEDGER_SECRET_KEY: {KEY}=\nFLOWLEDGER_DATABASE_URL pg://u:{KEY}@h/d?a=b\n")
    with pytest.raises(
        SettingsError, match=r"line 1: FLOWLEDGER_SECRET_KEY: .*\n.*line 2: FLOWLEDGER_DATABASE_URL: "
    ) as caught:
        load_settings({}, tmp_path / ".env")
    assert KEY not in str(caught.value)
    (tmp_path / ".env").write_text("\ufeffOTHER\nexport\tFLOWLEDGER_MODELS = offline\n", "utf-8")
    assert load_settings({}, tmp_path / ".env").models == "offline"


def test_every_entry_of_allowed_hosts_means_something() -> None:
    assert load_settings({"FLOWLEDGER_HTTP_ALLOW": "10.0.0.0/8, db:80"}, None).http_allow == ("10.0.0.0/8", "db:80")
    with pytest.raises(SettingsError, match=r"FLOWLEDGER_HTTP_ALLOW.*'\?'\n.*FLOWLEDGER_HTTP_ALLOW.*a/b"):
        load_settings({"FLOWLEDGER_HTTP_ALLOW": "? a/b"}, None)


def test_an_env_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"FLOWLEDGER_URL=\xff\n")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        load_settings({}, tmp_path / ".env")
