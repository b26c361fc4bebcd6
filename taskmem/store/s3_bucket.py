"""One bucket through boto3, its faults told apart: a condition that did not hold, no answer, a user's mistake."""

import logging
import os
import random
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from boto3.session import Session
from botocore import exceptions as boto
from botocore.config import Config

from taskmem.errors import UserError
from taskmem.store.s3_faults import NoAnswer, Refusal

_CONNECT_TIMEOUT = 10.0
_ATTEMPTS_TO_CONNECT = 3
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0

# a server that answers without a document gives the number only
_CODES = {"404": "NoSuchKey", "409": "ConditionalRequestConflict", "412": "PreconditionFailed", "501": "NotImplemented"}
_REFUSALS = {*_CODES.values(), "OperationAborted", "NoSuchUpload"}
_BUSY = {"SlowDown", "Throttling", "RequestTimeout", "TooManyRequests", "RequestLimitExceeded", "429"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.SSOError,
    boto.LoginError,
    boto.TokenRetrievalError,
)
_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError)


class Bucket:
    """The bucket `name`; credentials, region and endpoint come by boto3's own chain and from nowhere else.

    Calls are attempted `attempts` times (botocore's standard mode: exponential backoff with jitter, up to 20 s) over
    5xx, throttling, timeouts and broken connections; `timeout` is the longest silence of the server in seconds. Safe
    for threads, and in a forked child.
    """

    def __init__(self, name: str, attempts: int, timeout: float) -> None:
        self.name, self._attempts, self._timeout = name, attempts, timeout
        self.where = f"s3://{name}"
        _silence_botocore()
        try:
            self._connect()
        except (boto.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise translated(error, self.where) from None
        self.where = f"s3://{name} at {_shown(self._client.meta.endpoint_url)}"
        self._check_endpoint()

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """S3's answer to an operation of boto3's client; raises Refusal, NoAnswer, or UserError in one line."""
        try:
            answer: dict[str, Any] = getattr(self._current(), operation)(Bucket=self.name, **parameters)
        except (boto.ClientError, boto.BotoCoreError) as error:
            raise translated(error, self.where) from None
        return answer

    def read(self, key: str) -> tuple[bytes, str]:
        """An object's bytes and S3's ETag; raises as `call`, Refusal where there is none."""
        for _ in self.tries():
            answer = self.call("get_object", Key=key)
            try:
                return answer["Body"].read(), answer["ETag"]
            except _NO_ANSWER:  # botocore retries a call, and not the reading of what it streams
                continue
        raise NoAnswer(f"{self.where}: the server keeps breaking off its answers; check the network and run again")

    def names(self, prefix: str) -> Iterator[str]:
        """The keys that begin with `prefix`, in the order of their UTF-8 bytes, asked for page by page."""
        answer: dict[str, Any] = {}
        while True:
            following = {"ContinuationToken": answer["NextContinuationToken"]} if answer else {}
            answer = self.call("list_objects_v2", Prefix=prefix, **following)
            yield from (entry["Key"] for entry in answer.get("Contents", ()))
            if not answer.get("IsTruncated"):
                return

    def tries(self) -> Iterator[int]:
        """As many turns as a call has attempts, with growing random pauses between them."""
        for turn in range(self._attempts):
            if turn:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2**turn)))
            yield turn

    def _connect(self) -> None:
        self._session = Session()
        self._client = self._client_of(self._attempts)
        self._process = os.getpid()

    def _current(self) -> Any:
        # A forked child must not speak on its parent's connections.
        if self._process != os.getpid():
            self._connect()
        return self._client

    def _client_of(self, attempts: int) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=self._timeout,
            # Every object carries its own digest.
            response_checksum_validation="when_required",
        )
        return self._session.client("s3", config=config)

    def _check_endpoint(self) -> None:
        """A mistyped endpoint is told within seconds; every other fault is left to the calls that follow."""
        try:
            self._client_of(_ATTEMPTS_TO_CONNECT).head_bucket(Bucket=self.name)
        except boto.ConnectionError as error:
            raise translated(error, self.where) from None
        except (boto.ClientError, boto.BotoCoreError):
            return


def translated(error: Exception, where: str) -> Exception:
    """What a fault of boto3 means; names no more of it than its kind, since its text may hold a credential."""
    kind = type(error).__name__
    if isinstance(error, boto.ClientError):
        return _refused(error, where)
    if isinstance(error, _NO_CREDENTIALS):
        return UserError(f"{where}: no usable credentials ({kind}); give boto3 some: AWS_* variables, ~/.aws or a role")
    if isinstance(error, _NO_ANSWER):
        return NoAnswer(f"{where}: no answer ({kind}); check AWS_ENDPOINT_URL and the network")
    return UserError(f"{where}: boto3 cannot work with its settings ({kind}); check the AWS_* variables and ~/.aws")


def _refused(error: boto.ClientError, where: str) -> Exception:
    given = re.sub(r"[^A-Za-z0-9.]", "", str(error.response.get("Error", {}).get("Code", "")))
    code = _CODES.get(given, given)
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    if code in _REFUSALS:
        return Refusal(where, code, metadata.get("RetryAttempts", 0) > 0)
    if code == "NoSuchBucket":
        return UserError(f"{where}: no such bucket; create it, or correct the URL")
    if status >= 500 or code in _BUSY:
        return NoAnswer(f"{where}: the server keeps failing ({code}); run again later")
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
        return UserError(f"{where}: access denied ({code}); check the credentials and what they may do in this bucket")
    return UserError(f"{where}: the server refuses ({code or status}); check the bucket's region and settings")


def _silence_botocore() -> None:
    logger = logging.getLogger("botocore")
    # Below, it logs requests as they are signed, session token included.
    if logger.level < logging.WARNING:
        logger.setLevel(logging.WARNING)


def _shown(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
