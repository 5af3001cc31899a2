"""The model that a container was encoded with."""

from histocodec.errors import FormatError, MissingModelError, UnsupportedError
from histocodec.formats.container.abstract_container import Container
from histocodec.models.weights import ModelWeights, find_model, parse_model


def model_of(container: Container) -> ModelWeights:
    """The model with the id and SHA-256 that a container's attributes name: one that is installed, or lies beside it in
    a local folder; else the one embedded in it, which need not be read where there is another.

    Raises MissingModelError where none of these is there, and FormatError where the embedded model is damaged or the
    attributes describe another network.
    """
    reference = container.attributes.model
    try:
        weights = find_model(reference.id, reference.sha256, beside=[container.folder] if container.folder else [])
    except (MissingModelError, FormatError, UnsupportedError):  # none, or a file that is damaged
        embedded = container.model_bytes()
        if embedded is None:
            raise
        weights = parse_model(embedded, name=f"{container.name}: embedded model")
    config = weights.config
    stated = f"family {reference.family}, stride {reference.stride} and {reference.channels} channels"
    actual = f"family {config.family}, stride {config.stride} and {config.latent_channels} channels"
    if stated != actual:
        raise FormatError(f"{container.name}: states {stated} for model {reference.id}, which has {actual}")
    return weights
