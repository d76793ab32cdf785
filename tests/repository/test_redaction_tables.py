"""Texts with and without secrets, and their redacted forms."""

import time

import pytest

from orchestrator.redaction import credentials_in, redact

LETTERS = "aB3dE5fG7hI9jK1lM2nO4pQ6rS8tU0vW2xY4zA6b"

# (text, what is left of it). Tokens are put together here so that scanners of the repository do not take them
# for real ones.
SECRETS = [
    # users of URIs
    ("https://me:hunter2@mlflow.example.org/path", "https://***@mlflow.example.org/path"),
    ("HTTPS://hunter2@host", "HTTPS://***@host"),
    ("postgresql://me:1234/hunter2@db/mlflow", "postgresql://***@db/mlflow"),
    ("postgresql+psycopg2://me:p@ss/w:ord@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
    ("redis://:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
    ("s3://AKIAX:hunter2@bucket/weights", "s3://***@bucket/weights"),
    ("s3://hunter2@bucket/weights", "s3://***@bucket/weights"),
    ("from https://a:one@h1/x and http://b:two@h2/y", "from https://***@h1/x and http://***@h2/y"),
    ("https%3A%2F%2Fme%3Ahunter2%40host%2Fx", "https://***@host/x"),
    ("https%253A%252F%252Fme%253Ahunter2%2540host", "https://***@host"),
    ("next=https%3A%2F%2Fme%3Ahunter2%40host", "next=https://***@host"),
    ("https&#58;&#47;&#47;me:hunter2@host", "https://***@host"),
    (r"https:\\me:hunter2@host", r"https:\\***@host"),
    (r'"https:\/\/me:hunter2@host\/x"', r'"https:\/\/***@host\/x"'),
    (r'{"uri": "https://me:hunter2\u0040host"}', '{"uri": "https://***@host"}'),
    ("https://me:hun ter2@host", "https://***@host"),
    ("https://me:hun\nter2@host", "https://***@host"),
    ("https://me/hunter2@host", "https://***@host"),
    ("sqlite:///x.db?uri=https://me:hunter2@host", "sqlite:///x.db?uri=https://***@host"),
    ("git+ssh://git:hunter2@host/x", "git+ssh://***@host/x"),
    ("mongodb+srv://me:hunter2@cluster0.example.net/?retryWrites=true", "mongodb+srv://***@cluster0.example.net/?retryWrites=true"),
    ("abfss://me:hunter2@account.dfs.core.windows.net/x", "abfss://***@account.dfs.core.windows.net/x"),
    # parameters
    ("https://host/?token=hunter2&a=1", "https://host/?token=***&a=1"),
    ("https://host/?a=1&amp;token=hunter2", "https://host/?a=1&amp;token=***"),
    ("https://host/cb#access_token=hunter2&x=1", "https://host/cb#access_token=***&x=1"),
    ("https://host/a;token=hunter2", "https://host/a;token=***"),
    ("https://host/?auth=hunter2", "https://host/?auth=***"),
    ("https://host/?key=hunter2&a=1", "https://host/?key=***&a=1"),
    ("https://host/?code=hunter2", "https://host/?code=***"),
    ("https://host/?jwt=hunter2", "https://host/?jwt=***"),
    ("https://host/?client%5Fsecret=hunter2&a=1", "https://host/?client%5Fsecret=***&a=1"),
    ("https://host/?apiKey=hunter2", "https://host/?apiKey=***"),
    # signed URLs
    ("https://b.s3.amazonaws.com/k?AWSAccessKeyId=AKX&Expires=1&Signature=hun%2Fter2", "https://b.s3.amazonaws.com/k?AWSAccessKeyId=***&Expires=1&Signature=***"),
    ("https://b/k?X-Amz-Credential=A%2F1&X-Amz-Date=1&X-Amz-Security-Token=t&X-Amz-Signature=s", "https://b/k?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Security-Token=***&X-Amz-Signature=***"),
    ("https://cdn/x?Expires=1&Policy=eyJ&Key-Pair-Id=K1&Signature=s", "https://cdn/x?Expires=1&Policy=***&Key-Pair-Id=***&Signature=***"),
    ("https://storage.googleapis.com/b?X-Goog-Credential=c&X-Goog-Signature=s", "https://storage.googleapis.com/b?X-Goog-Credential=***&X-Goog-Signature=***"),
    ("https://a.blob.core.windows.net/c/b?sv=2024&se=2025&sig=hunter2%3D", "https://a.blob.core.windows.net/c/b?sv=2024&se=2025&sig=***"),
    # data sources
    ("me:hunter2@db:5432/mlflow", "me:***@db:5432/mlflow"),
    ("me:hunter2@db/mlflow", "me:***@db/mlflow"),
    ("host=db user=me password=hunter2 dbname=mlflow", "host=db user=me password=*** dbname=mlflow"),
    ("host=db password='hun ter2' dbname=mlflow", "host=db password='***' dbname=mlflow"),
    ("Driver={x};Server=db;UID=me;PWD=hunter2;", "Driver={x};Server=db;UID=me;PWD=***;"),
    ("Server=db;Pwd={hun;ter2};Port=1", "Server=db;Pwd=***;Port=1"),
    ("AccountName=a;AccountKey=hunter2==;EndpointSuffix=core", "AccountName=a;AccountKey=***;EndpointSuffix=core"),
    ("Endpoint=sb://x/;SharedAccessKeyName=root;SharedAccessKey=hunter2=", "Endpoint=sb://x/;SharedAccessKeyName=root;SharedAccessKey=***"),
    ("db:5432:mlflow:me:hunter2", "db:5432:mlflow:me:***"),
    ("machine host login me password hunter2", "machine host login me password ***"),
    ("ALTER USER me WITH PASSWORD 'hunter2'", "ALTER USER me WITH PASSWORD '***'"),
    # headers
    ("Authorization: Bearer hunter2token", "Authorization: Bearer ***"),
    ("authorization: Basic bWU6aHVudGVyMg==", "authorization: Basic ***"),
    ("sent Basic bWU6aHVudGVyMg== and failed", "sent Basic *** and failed"),
    ("curl -H 'X-Api-Key: hunter2' host", "curl -H 'X-Api-Key: ***' host"),
    ("Cookie: session=abc; csrf=def\nHost: x", "Cookie: ***\nHost: x"),
    ("Set-Cookie: id=abc; HttpOnly", "Set-Cookie: ***"),
    ("Authorization: AWS4-HMAC-SHA256 Credential=AK/1/s3, Signature=abc", "Authorization: ***"),
    ("{'Authorization': 'Bearer hunter2', 'Accept': '*/*'}", "{'Authorization': '***', 'Accept': '*/*'}"),
    ("X-Amz-Security-Token: hunter", "X-Amz-Security-Token: ***"),
    # names and values
    ('{"password": "hunter2", "user": "me"}', '{"password": "***", "user": "me"}'),
    ('{"token":"hun\\"ter2","a":1}', '{"token":"***","a":1}'),
    (r'{\"secret\": \"hunter2\", \"a\": 1}', r'{\"secret\": \"***\", \"a\": 1}'),
    ("{&quot;password&quot;: &quot;hunter2&quot;}", "{&quot;password&quot;: &quot;***&quot;}"),
    ('{"auths": {"ghcr.io": {"auth": "bWU6aHVudGVyMg=="}}}', '{"auths": {"ghcr.io": {"auth": "***"}}}'),
    ("Client(uri='x', password='hunter2', aws_secret_access_key='h2')", "Client(uri='x', password='***', aws_secret_access_key='***')"),
    ("login(token=b'hunter2')", "login(token=b'***')"),
    ("f(api_key=hunter2, n=1)", "f(api_key=***, n=1)"),
    ("AWS_SECRET_ACCESS_KEY=hun/ter+2", "AWS_SECRET_ACCESS_KEY=***"),
    ("export PGPASSWORD=hunter2; psql", "export PGPASSWORD=***; psql"),
    ("password: hunter2\nuser: me", "password: ***\nuser: me"),
    ("secret_key: |\n  hunter2\n", "secret_key: |\n  ***\n"),
    ("- name: DB_PASSWORD\n  value: hunter2", "- name: DB_PASSWORD\n  value: ***"),
    ('{"name": "HF_TOKEN", "value": "hunter2"}', '{"name": "HF_TOKEN", "value": "***"}'),
    ('os.environ["API_TOKEN"] = "hunter2"', 'os.environ["API_TOKEN"] = "***"'),
    ("wandb login --api-key hunter2", "wandb login --api-key ***"),
    ("Command '['pull', '--token', 'hunter2', '-y']' returned 1", "Command '['pull', '--token', '***', '-y']' returned 1"),
    (r'"[\"--api-key\",\"hunter2\"]"', r'"[\"--api-key\",\"***\"]"'),
    ("run --mlflow-password=hunter2 x", "run --mlflow-password=*** x"),
    ("curl -u me:hunter2 https://host", "curl -u me:*** https://host"),
    ("<server><password>hun ter2</password></server>", "<server><password>***</password></server>"),
    ('<add key="ApiKey" value="hunter2"/>', '<add key="ApiKey" value="***"/>'),
    ("headers=[('x-api-token', 'hunter2'), ('n', '1')]", "headers=[('x-api-token', '***'), ('n', '1')]"),
    ("the password is hunter2, not the other", "the password is ***, not the other"),
    ("https://host/path;jsessionid=hunter2", "https://host/path;jsessionid=***"),
    ("sshpass -p hunter2 ssh head", "sshpass -p *** ssh head"),
    ("smb://domain;me:hunter2@host/share", "smb://***@host/share"),
    ("//me:hunter2@host/x", "//me:***@host/x"),
    # tokens known by their form
    (f"Invalid user hf_{LETTERS[:34]}.", "Invalid user ***."),
    (f"git clone ghp_{LETTERS[:36]} x", "git clone *** x"),
    (f"github_pat_{LETTERS[:22]}_{LETTERS}", "***"),
    (f"glpat-{LETTERS[:20]}", "***"),
    ("dapi" + "0123456789abcdef" * 2, "***"),
    ("for AKIA" + "IOSFODNN7EXAMPLE", "for ***"),
    ("(ASIA" + "IOSFODNN7EXAMPLE)", "(***)"),
    (f"sk-proj-{LETTERS}", "***"),
    ("xoxb-" + "123456789012-abcdefghij", "***"),
    ("eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "***"),
    (f"npm_{LETTERS[:36]}", "***"),
    (f"pypi-AgEIcHlwaS5vcmc{LETTERS}", "***"),
    (f"AIza{LETTERS[:35]}", "***"),
    ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/***"),
    ("-----BEGIN EC PRIVATE " + "KEY-----\nMI=\n-----END EC PRIVATE KEY-----\nx", "-----BEGIN EC PRIVATE KEY-----***-----END EC PRIVATE KEY-----\nx"),
    ("-----BEGIN OPENSSH PRIVATE " + "KEY-----\\nb3Bl\\ncut", "-----BEGIN OPENSSH PRIVATE KEY-----***"),
]  # fmt: skip

INNOCENT = [
    # numbers of our own
    "8bb0a1e",
    "8bb0a1e0f3c2d4b5a69788776655443322110099",
    "fingerprint 0f3c2d4b5a697887 of demos-50-seed-0",
    "run 3f1c9e0b7a4d4c1e9f0a1b2c3d4e5f60 of experiment 1",
    "arms/0f3c2d4b5a69/step_000100",
    "checkpoint m-0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "success 37/50 = 0.74, 95 % interval 0.60 to 0.85",
    "demo_count=50, action_free_ratio=1.5, seed=0",
    "trained demos-50-ratio-1.5-seed-2",
    "loss:0.25@step_100 lr:1e-3@epoch3",
    "[12:34] trained demos-10",
    "12:34:56.789 stopped",
    "2026-01-02T03:04:05+00:00",
    "1,024 tokens, 3 keys, 2 secrets",
    # places
    "s3://results/lift",
    "s3://results/2024:01/a@b/c.parquet",
    "sqlite:////data/a@b/mlflow.db",
    "sqlite:///C:/runs/mlflow.db",
    "file:///shared/weights",
    "http://localhost:5000",
    "http://head:8265/@me",
    "https://mlflow.example.org:5000/#/experiments/1/runs/3f1c9e0b",
    "http://[::1]:8000/contract",
    "https://host/?page=2&sort_key=name&keyword=arm&tokenizer=clip&max_tokens=77",
    "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt",
    "git+https://github.com/ARISE-Initiative/robosuite@v1.5.1",
    "git@github.com:ARISE-Initiative/robosuite.git",
    "ssh://git@github.com/ARISE-Initiative/robosuite.git",
    "https://medium.com/@someone/a-post",
    "abfss://container@account.dfs.core.windows.net/data",
    "ray://head:10001",
    "127.0.0.1:6379",
    "see http://localhost:5000 or write to me@example.org",
    "('http://h:80','b','x@y')",
    r"C:\Users\me\runs",
    r"\\server\share\lift",
    "/home/me/.cache/demoscale/weights",
    "PWD=/home/me/work",
    "models:/policy@champion",
    "hf://datasets/lerobot/pusht@main",
    # names
    "me@example.org",
    "mailto:me@example.org",
    "From:me.b7@example.org",
    "user@host",
    "python:3.11-slim@sha256:0f3c2d4b5a69788776655443322110090f3c2d4b5a69788776655443322110aa",
    "ghcr.io/org/image:v1.2@sha256:0f3c2d4b5a697887",
    "npm:lodash@latest npm:lodash@4.17.21",
    "pip install demoscale==1.2.0 torch>=2.6,<3",
    "arn:aws:s3:::results/lift",
    "examples.waypoints:make",
    "robot0_eye_in_hand=agentview,robot0_agentview",
    "MUJOCO_GL=egl OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false",
    "RAY_AUTH_TOKEN_PATH=/run/ray/auth",
    "['--token-env', 'DEMOSCALE_POLICY_TOKEN'], ['--max-tokens', '8000']",
    "demoscale serve --token-env DEMOSCALE_POLICY_TOKEN --port 8000",
    "from hf_hub_download import sklearn, sk-learn-compatible-estimators-are-fine",
    # sentences
    "set RAY_AUTH_MODE=token and, to the cluster's own token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
    "refuses the credentials (401); set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "the password is wrong; ask for another",
    "password: the one of the tracking server",
    "token: expired",
    "3 fail, pass=12, pass: 12",
    "// note: nothing@here",
    "one of ('policy', 'token') and ('demo_count', '50')",
    "<tokens>77</tokens>",
    "Basic authentication is required, or a bearer token of the server",
    "Authorization is missing",
    "SignatureDoesNotMatch: the request signature we calculated does not match",
    "signature: (self, observations)",
    "unexpected token '<' in JSON at position 0",
    "max_tokens: 512, num_tokens=77, token_type: bearer",
    "password=None, token=null, secret=${HF_TOKEN}",
    "token = os.environ['HF_TOKEN']",
    "def login(self, token: str | None = None) -> None:",
    "https://***@host/?token=***",
    '{"password": "***"}',
    "AssertionError: assert 1 == 2 and a.b:c == d",
    'File "/work/policy/http_policy.py", line 12, in act',
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me",
    "100%|####| 50/50 [00:10<00:00, 4.8it/s]",
    "a &amp; b &lt;c&gt; 50%25 %3Cdiv%3E",
    "",
]  # fmt: skip


def test_redaction_tables_have_at_least_sixty_rows() -> None:
    assert len({text for text, _ in SECRETS}) >= 60
    assert len(set(INNOCENT)) >= 60


@pytest.mark.parametrize(("text", "left"), SECRETS)
def test_redact_removes_the_secret_and_nothing_else(text: str, left: str) -> None:
    assert redact(text) == left
    assert credentials_in(text)
    assert redact(left) == left, "what is redacted once stays as it is"
    assert not credentials_in(left)


@pytest.mark.parametrize("text", INNOCENT)
def test_redact_leaves_an_innocent_text_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not credentials_in(text)


PIECES = [
    "a", ":", "@", "=", "-", "%", "%3A", "&amp;", "\\", "\\\\", "'", '"', "{", " ", "\n", "/", "_", "://", "a://", "ab://", "ab://a:",
    "ab://a@", "password=", "password:", "password= ", "password=none,", 'password="', "password='", 'password=\\"', "password=\\",
    "cookie: <", "cookie=", "authorization: basic ", "a=", "a:", "a.b-", "?a=", "&key=", ";key=", "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN A", "eyJaaaaaaaa.", "eyJ", "sk-", "ghp_", "bearer ", "basic aaaaaaaa", "me:a", "a:b@", "a:1234:", "login a password ",
    "-u a:", "&a=,b=", "password=a,", "%2540a%3A%2F%2F", "--token ", "name: value: ", "'--token', '", "https://me:a b ", "https://a/", "https://a:1/",
    "password '", "\\u0040", "\\u0000", "&#58;", "password: str = ", "hooks.slack.com/services/", "0123456789:AA", "token: 1 ",
    "<a>", "<password>a", "('token', '", "//a:", "password is ",
]  # fmt: skip
"""Pieces whose repetition could make the expressions backtrack."""


@pytest.mark.parametrize("piece", PIECES)
def test_redact_takes_linear_time(piece: str) -> None:
    """A text eight times as long takes eight times as long in linear time and 64 times in quadratic time."""
    short, long = (piece * (length // len(piece)) + "\0@" for length in (12_500, 100_000))
    assert any(_seconds(long) < 20 * _seconds(short) for _ in range(3)), (
        "one of three, since other work disturbs the shorter measurement"
    )


def _seconds(text: str) -> float:
    began = time.process_time()
    redact(text)
    return time.process_time() - began
