"""The model that a container was encoded with."""

from histocodec.errors import FormatError
from histocodec.formats.container.read import Container
from histocodec.models.weights import ModelWeights, find_model, parse_model


def model_of(container: Container) -> ModelWeights:
    """The embedded model of a container, else the installed one with the id and SHA-256 that its attributes name.

    Raises MissingModelError where neither is there, and FormatError where the embedded model is damaged or the
    attributes describe another network.
    """
    reference, embedded = container.attributes.model, container.model_bytes()
    if embedded is None:
        weights = find_model(reference.id, reference.sha256)
    else:
        weights = parse_model(embedded, name=f"{container.name}: embedded model")
    config = weights.config
    stated = f"family {reference.family}, stride {reference.stride} and {reference.channels} channels"
    actual = f"family {config.family}, stride {config.stride} and {config.latent_channels} channels"
    if stated != actual:
        raise FormatError(f"{container.name}: states {stated} for model {reference.id}, which has {actual}")
    return weights
