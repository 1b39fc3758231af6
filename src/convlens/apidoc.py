"""What OpenAPI says of the routes: parameters, bodies, answers with examples, and every status that is an error."""

from __future__ import annotations

from typing import Any

PNG = (  # a drawn 7, 28 x 28
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAAO0lEQVR42oXNMQqAMAAEwckhpPM9eb5PyTMsAlqYYKdXLAtbHP8r"
    "1ylswoAmE6A/FqWLHCtUK7y2f/zc9f0GII5ewfYAAAAASUVORK5CYII="
)
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "One sentence."}},
    "required": ["error"],
    "additionalProperties": False,
}
WHY = {
    400: ("The body is not what its Content-Type says, or has no picture.", "the body is not JSON"),
    401: ("The server wants a token.", "this server wants its token: Authorization: Bearer ..."),
    403: ("The request comes from a page of another site.", "a page of another site may not use this server"),
    408: ("The request did not arrive in time.", "the request did not arrive within 30 seconds"),
    409: ("The model is served in a format that cannot be explained.", "an explanation needs the network in PyTorch"),
    413: ("Too many bytes or pictures.", "a request may have 20,000,000 bytes"),
    415: ("The body has a type that is not taken.", "a body is taken without Content-Encoding only"),
    421: ("The Host header names another server.", "this server is not known by the name in the Host header"),
    422: ("The only picture cannot be read, or a field is out of range.", "top is 1 or more, not 0"),
    500: ("An error of the server, which its log has under the answer's X-Request-Id.", "an error of the server"),
    503: (
        "Busy, not ready or shutting down: Retry-After says when to come again.",
        "as many pictures wait as it takes",
    ),
}
COMMON = (403, 413, 415, 421, 500, 503)  # of every route: the guard looks at them before

ROW = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "description": "The file's name in the form; empty elsewhere."},
        "label": {"type": "string", "description": "The likeliest class, or `unknown` below the threshold."},
        "probability": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "Calibrated."},
        "top": {
            "type": "array",
            "description": "Pairs of a class and its probability, the likeliest first.",
            "items": {
                "type": "array",
                "items": {"anyOf": [{"type": "string"}, {"type": "number"}]},
                "minItems": 2,
                "maxItems": 2,
            },
        },
        "energy": {"type": ["number", "null"]},
        "unusual": {
            "type": ["boolean", "null"],
            "description": "Whether the picture is unlike those of training; null where the model does not know.",
        },
        "error": {"type": "string", "description": "Why this picture has no answer; empty where it has one."},
    },
    "required": ["file", "label", "probability", "top", "energy", "unusual", "error"],
}
EXAMPLE = {
    "predictions": [
        {
            "file": "",
            "label": "7",
            "probability": 0.998,
            "top": [["7", 0.998], ["1", 0.001]],
            "energy": -12.3,
            "unusual": False,
            "error": "",
        }
    ]
}
PREDICTIONS = {
    "type": "object",
    "properties": {"predictions": {"type": "array", "items": ROW}},
    "required": ["predictions"],
}
NUMBERS = {
    "top": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 1, "description": "Classes a picture."},
    "threshold": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0,
        "description": "The label is `unknown` where the probability is below it.",
    },
}
WORDS = {
    "method": {
        "type": "string",
        "enum": ["saliency", "input-x-gradient", "integrated-gradients", "grad-cam", "occlusion"],
        "default": "grad-cam",
    },
    "class": {"type": "string", "minLength": 1, "description": "By name or number; by default the answer."},
    "against": {"type": "string", "minLength": 1, "description": "Why that class and not this one."},
    "layer": {"type": "string", "minLength": 1, "description": "Where Grad-CAM looks."},
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": WHY[status][0],
            "content": {"application/json": {"schema": ERROR, "example": {"error": WHY[status][1]}}},
        }
        for status in sorted({*statuses, *COMMON})
    }


def _answer(description: str, schema: dict[str, Any], example: Any, kind: str = "application/json") -> dict[str, Any]:
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"description": description, "content": {kind: content}}


def _body(fields: dict[str, Any], most: int) -> dict[str, Any]:
    """A request with up to `most` pictures: as it is, as JSON, as a form."""
    encoded = {"type": "string", "contentEncoding": "base64", "minLength": 4}
    of_json = {
        "type": "object",
        "properties": {"images": {"type": "array", "items": encoded, "minItems": 1, "maxItems": most}, **fields},
        "required": ["images"],
        "additionalProperties": False,
    }
    of_form = {
        "type": "object",
        "properties": {
            "images": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "minItems": 1,
                "maxItems": most,
                "description": "Files; the name of their part is of no account.",
            },
            **fields,
        },
        "required": ["images"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            **{
                kind: {"schema": {"type": "string", "contentMediaType": kind}}
                for kind in ("image/png", "image/jpeg", "image/*", "application/octet-stream")
            },
            "application/json": {"schema": of_json, "example": {"images": [PNG]}},
            "multipart/form-data": {"schema": of_form},
        },
    }


def _asking(fields: dict[str, Any], most: int) -> dict[str, Any]:
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()
        ],
        "requestBody": _body(fields, most),
        "security": [{"token": []}, {}],
    }


def predicting(most: int) -> dict[str, Any]:
    """Of /v1/predict, which takes up to `most` pictures."""
    said = "A row a picture, in their order: those of `convlens predict --json`."
    responses = {200: _answer(said, PREDICTIONS, EXAMPLE), **_errors(400, 401, 408, 422)}
    return {"responses": responses, "openapi_extra": _asking(NUMBERS, most)}


def with_security(document: dict[str, Any]) -> dict[str, Any]:
    """The document, which also says what the "token" is that its routes name."""
    token = {"type": "http", "scheme": "bearer", "description": "What the server was started with as --token."}
    document.setdefault("components", {})["securitySchemes"] = {"token": token}
    return document


EXPLAIN: dict[str, Any] = {
    "responses": {
        200: _answer("The picture, its heat, and both.", {"type": "string", "format": "binary"}, None, "image/png"),
        **_errors(400, 401, 408, 409, 422),
    },
    "openapi_extra": _asking(WORDS, 1),
}
MODEL: dict[str, Any] = {
    "responses": {
        200: _answer(
            "Classes, input, calibration, metrics, limits.",
            {"type": "object", "required": ["format", "sha256", "classes", "input", "calibration", "metrics"]},
            {"format": "safetensors", "classes": ["0", "1"], "input": {"size": [28, 28], "channels": 1}},
        ),
        **_errors(401),
    },
    "openapi_extra": {"security": [{"token": []}, {}]},
}


def _status(word: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    return {"responses": {200: _answer("It is.", schema, {"status": word}), **_errors()}}


HEALTHZ, READYZ = _status("ok"), _status("ready")
METRICS: dict[str, Any] = {
    "responses": {
        200: _answer("Prometheus' text format.", {"type": "string"}, None, "text/plain"),
        **_errors(401),
    },
    "openapi_extra": {"security": [{"token": []}, {}]},
}
