"""Fixes for the error codes of S3 servers and the exceptions of botocore, and which of them are transient."""

UNREACHABLE = (
    "EndpointConnectionError ConnectTimeoutError ConnectionClosedError ReadTimeoutError ProxyConnectionError"
)
FAILING = (
    "SlowDown ServiceUnavailable InternalError 500 502 503 504"
    " RequestTimeout Throttling ThrottlingException TooManyRequests 429"
)

# A server's message is never shown: it may repeat the request with its signature.
_MENDS = {
    "NoSuchBucket": "the bucket does not exist; create it or correct the URI",
    "AccessDenied AllAccessDisabled 403": "access is denied; check the permissions of the credentials in use",
    (
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired TokenRetrievalError"
        " SSOTokenLoadError UnauthorizedSSOTokenError"
    ): "the credentials have expired; renew them and start again",
    "InvalidToken InvalidClientTokenId": "the session token is not valid; check AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": (
        "the access key is not known to {server}; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
    ),
    "SignatureDoesNotMatch": "the secret key does not match the access key; check AWS_SECRET_ACCESS_KEY",
    "NoCredentialsError PartialCredentialsError CredentialRetrievalError ProfileNotFound": (
        "there are no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS_PROFILE that"
        " exists, or use an instance role"
    ),
    "RequestTimeTooSkewed": "this machine's clock and the server's differ too much; set the clock",
    "PermanentRedirect AuthorizationHeaderMalformed 301": (
        "the bucket is in another region; set AWS_DEFAULT_REGION"
    ),
    FAILING: "{server} is overloaded or failing; try again later, or with fewer workers",
    UNREACHABLE: "{server} cannot be reached; check AWS_ENDPOINT_URL and the network",
    "SSLError": "{server} has no certificate this machine trusts; check AWS_ENDPOINT_URL and AWS_CA_BUNDLE",
    "ResponseParserError 404 405": "{server} does not speak S3; check AWS_ENDPOINT_URL",
    "NotImplemented 501": (
        "{server} lacks a part of S3 that is needed, such as conditional writes; use another"
    ),
    "ValueError HTTPClientError": (
        "AWS_ENDPOINT_URL is not a URL that begins with http:// or https://, or the credentials hold stray"
        " characters"
    ),
}
MEND_OF = {code: mend for codes, mend in _MENDS.items() for code in codes.split()}
"""Error code or exception name -> rest of a sentence, in which `{server}` is replaced by the server's
address.
"""


def passes(*signs: str) -> bool:
    """Return whether an error is transient, by its code, HTTP status or name."""
    return not {*UNREACHABLE.split(), *FAILING.split()}.isdisjoint(signs)
