"""Posts events to a URL."""

import httpx

from gateway.domain.errors import Unavailable

_TIMEOUT_S = 5.0


class Webhook:
    """An HTTP endpoint that takes one JSON document a request, and answers 2xx for what it has taken."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._url = url
        self._http = httpx.Client(headers=headers, timeout=_TIMEOUT_S)

    def __call__(self, body: bytes) -> None:
        """Raises Unavailable unless the event was taken."""
        try:
            answer = self._http.post(self._url, content=body)
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise Unavailable(f"the webhook did not answer ({type(fault).__name__})") from None
        if not answer.is_success:
            raise Unavailable(f"the webhook answered {answer.status_code}")

    def close(self) -> None:
        self._http.close()
