"""Storage faults: nothing is lost or partly visible, and each fault is one sentence."""

import os
import pickle
import traceback
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from conftest import BUCKET, IMPATIENT

from fault_proxy import FaultProxy
from orchestrator.cli.main import main
from orchestrator.data.episode_store import commit, latest_version, load_manifest, put_episode
from orchestrator.storage.base import (
    CLAIM_ATTEMPTS,
    READ_ATTEMPTS,
    Storage,
    StorageError,
    check_conditional_writes,
    open_storage,
)
from orchestrator.testing.episodes import CONTRACT, make_episode

Point = Callable[[dict[str, str]], None]


# -- faults on the way to a server ---------------------------------------------------------------------------


def test_commit_to_a_server_that_ignores_conditions_raises(proxy: FaultProxy, bucket: Storage) -> None:
    proxy.will("unconditional", always=True)
    with pytest.raises(
        StorageError,
        match=(
            r"the server ignores conditional writes, so two writers could overwrite each other; use one that"
        ),
    ):
        commit(bucket, CONTRACT, [put_episode(bucket, make_episode(), 20.0)])
    assert latest_version(bucket) == 0


def test_conditional_writes_are_checked_again_after_a_failure(proxy: FaultProxy, bucket: Storage) -> None:
    proxy.will("unconditional", "", "unconditional")
    with pytest.raises(StorageError, match="ignores conditional writes"):
        check_conditional_writes(bucket)
    check_conditional_writes(bucket)


def test_conditional_writes_are_checked_once_per_server(proxy: FaultProxy, bucket: Storage) -> None:
    check_conditional_writes(bucket)
    proxy.requests.clear()
    check_conditional_writes(bucket)
    assert proxy.requests == []


def test_get_retries_a_truncated_body(proxy: FaultProxy, impatient_bucket: Storage) -> None:
    data = bytes(range(256)) * 400
    impatient_bucket.put("key", data)
    proxy.will(*["cut"] * (READ_ATTEMPTS - 1))
    assert impatient_bucket.get("key") == data
    assert len(proxy.requests) == READ_ATTEMPTS
    proxy.will("cut", always=True)
    with pytest.raises(
        StorageError,
        match=rf"the connection broke {READ_ATTEMPTS} times while key was read; check the network",
    ):
        impatient_bucket.get("key")


def test_put_if_absent_retries_after_a_conflict(proxy: FaultProxy, impatient_bucket: Storage) -> None:
    proxy.will("ConditionalRequestConflict")
    assert impatient_bucket.put_if_absent("key", b"first")
    proxy.will("ConditionalRequestConflict")
    assert not impatient_bucket.put_if_absent("key", b"second")
    proxy.will("ConditionalRequestConflict", always=True)
    with pytest.raises(
        StorageError,
        match=rf"other stayed contended for {CLAIM_ATTEMPTS} attempts; start again with fewer writers",
    ):
        impatient_bucket.put_if_absent("other", b"")


def test_commit_with_a_lost_answer_is_made_once(proxy: FaultProxy, impatient_bucket: Storage) -> None:
    entry = put_episode(impatient_bucket, make_episode(), 20.0)
    check_conditional_writes(impatient_bucket)
    proxy.will("", "", "unanswered")  # a list, the manifest, and the claim of the version
    commit(impatient_bucket, CONTRACT, [entry])
    claims = [
        request
        for request in proxy.requests
        if request.endswith("versions/000001.json") and request.startswith("PUT")
    ]
    assert len(claims) == 2
    assert latest_version(impatient_bucket) == 1
    assert load_manifest(impatient_bucket).episode_ids == [entry.episode_id]


def test_commit_with_expiring_credentials_leaves_a_whole_store(proxy: FaultProxy, bucket: Storage) -> None:
    check_conditional_writes(bucket)
    proxy.requests.clear()
    commit(bucket, CONTRACT, [put_episode(bucket, make_episode(0), 20.0)])
    for before in range(len(proxy.requests)):
        proxy.will(*[""] * before, "ExpiredToken")
        with pytest.raises(StorageError, match="the credentials have expired"):
            commit(bucket, CONTRACT, [put_episode(bucket, make_episode(1), 20.0)])
        assert load_manifest(bucket).episode_ids == ["Lift-000000"]
    commit(bucket, CONTRACT, [put_episode(bucket, make_episode(1), 20.0)])
    assert load_manifest(bucket).episode_ids == ["Lift-000000", "Lift-000001"]


def test_storage_retries_a_short_overload(proxy: FaultProxy, impatient_bucket: Storage) -> None:
    proxy.will("SlowDown", "SlowDown")
    impatient_bucket.put("key", b"data")
    proxy.will("SlowDown", "unanswered")
    assert impatient_bucket.get("key") == b"data"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("ExpiredToken", "the credentials have expired; renew them and start again"),
        ("RequestExpired", "the credentials have expired; renew them and start again"),
        ("InvalidToken", "the session token is not valid; check AWS_SESSION_TOKEN"),
        ("AccessDenied", "access is denied; check the permissions of the credentials in use"),
        ("RequestTimeTooSkewed", "this machine's clock and the server's differ too much; set the clock"),
        (
            "SlowDown",
            "the server 127.0.0.1:PORT is overloaded or failing; try again later, or with fewer workers",
        ),
        (
            "NotImplemented",
            (
                "the server 127.0.0.1:PORT lacks a part of S3 that is needed, such as conditional writes; use"
                " another"
            ),
        ),
        ("unanswered", "the server 127.0.0.1:PORT cannot be reached; check AWS_ENDPOINT_URL and the network"),
    ],
)
def test_storage_refusal_is_one_sentence(
    proxy: FaultProxy, impatient_bucket: Storage, fault: str, sentence: str
) -> None:
    impatient_bucket.put("key", b"data")
    proxy.will(fault, always=True)
    for use in (
        lambda: impatient_bucket.get("key"),
        lambda: impatient_bucket.put("key", b"other"),
        lambda: impatient_bucket.put_if_absent("new", b""),
        lambda: impatient_bucket.exists("key"),
        lambda: impatient_bucket.list(""),
    ):
        with pytest.raises(StorageError) as raised:
            use()
        assert (
            str(raised.value) == f"{impatient_bucket.uri}: {sentence.replace('PORT', str(proxy.server_port))}"
        )
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
        assert "Signature" not in "".join(traceback.format_exception(raised.value))


def test_storage_at_a_web_server_raises(proxy: FaultProxy, bucket: Storage) -> None:
    proxy.will("web page")
    with pytest.raises(
        StorageError, match=r"the server 127\.0\.0\.1:\d+ does not speak S3; check AWS_ENDPOINT_URL"
    ):
        bucket.list("")


# -- settings ------------------------------------------------------------------------------------------------

KEY, SECRET = "AKIDNOTTOBESHOWN", "sEcReT+not=to+be+shown"
NO_FILES = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.mark.usefixtures("no_backoff", "s3")
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"AWS_ENDPOINT_URL": f"http://{KEY}:{SECRET}@127.0.0.1:9"},
            "the server 127.0.0.1:9 cannot be reached; check AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": "127.0.0.1:9"},
            "AWS_ENDPOINT_URL is not a URL that begins with http:// or https://",
        ),
        (
            {"AWS_ACCESS_KEY_ID": f"{KEY}\n", "AWS_SECRET_ACCESS_KEY": SECRET},
            "or the credentials hold stray characters",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "", **NO_FILES},
            "there are no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": "", **NO_FILES},
            "there are no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_PROFILE": "nobody", **NO_FILES}, "or an AWS_PROFILE that exists"),
    ],
    ids=[
        "nobody listens",
        "no URL",
        "stray character",
        "no credentials",
        "half the credentials",
        "no profile",
    ],
)
def test_storage_setting_that_is_wrong_is_one_sentence(
    s3_environment: Point, variables: dict[str, str], sentence: str
) -> None:
    s3_environment(variables)
    with pytest.raises(StorageError) as raised:
        open_storage(f"s3://{BUCKET}", IMPATIENT).list("")
    shown = "".join(traceback.format_exception(raised.value))
    assert sentence in str(raised.value)
    assert KEY not in shown
    assert SECRET not in shown


STATUS = ["status", "lift", "--storage", "URI"]
PLAN = ["plan", "jobs/quickstart.yaml", "--set", "data.episodes=URI"]
COLLECT = ["collect", "--episodes", "1", "--store", "URI"]
WRONG_SECRET = (
    {"AWS_SECRET_ACCESS_KEY": SECRET},
    "the secret key does not match the access key; check AWS_SECRET_ACCESS_KEY",
)
UNKNOWN_KEY = {"AWS_ACCESS_KEY_ID": KEY, **WRONG_SECRET[0]}, "; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
MISSING_BUCKET: tuple[dict[str, str], str] = {}, "the bucket does not exist; create it or correct the URI"


@pytest.mark.weed
@pytest.mark.parametrize(
    ("command", "code", "wrong", "bucket"),
    [
        (STATUS, 1, WRONG_SECRET, BUCKET),
        (STATUS, 1, UNKNOWN_KEY, BUCKET),
        (STATUS, 1, MISSING_BUCKET, "no-such-bucket"),
        (PLAN, 2, WRONG_SECRET, BUCKET),
        (COLLECT, 1, UNKNOWN_KEY, BUCKET),
    ],
    ids=[
        "status, wrong secret",
        "status, unknown key",
        "status, missing bucket",
        "plan, wrong secret",
        "collect, unknown key",
    ],
)
def test_command_refused_by_a_real_server_shows_no_secret(
    weed: dict[str, str],
    s3_environment: Point,
    command: list[str],
    code: int,
    wrong: tuple[dict[str, str], str],
    bucket: str,
) -> None:
    variables, sentence = wrong
    environment = weed | variables
    s3_environment(environment)
    done = CliRunner().invoke(main, [part.replace("URI", f"s3://{bucket}/lift") for part in command])
    shown = done.output
    assert done.exit_code == code, shown
    assert shown.count(f"s3://{bucket}/lift: ") == shown.count(sentence) == 1
    for hidden in (
        "Traceback",
        "Signature=",
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
    ):
        assert hidden not in shown
