"""Ask a served model, from Python, over gRPC."""

from stillhouse.client.texts import predict_texts

__all__ = ["predict_texts"]
