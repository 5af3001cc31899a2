"""What is wrong with the files of a container, whatever its version."""

from collections.abc import Iterator

from histocodec.errors import FormatError
from histocodec.formats.container import integrity
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.version1.integrity import container_problems as problems_of_version_1


def container_problems(container: Container) -> Iterator[FormatError]:
    """Everything that is not as it was written, file by file; but not embeddings, which are added later. Nothing is
    decoded."""
    if isinstance(container, ContainerV1):
        return problems_of_version_1(container)
    assert isinstance(container, ContainerV2), "there are two versions"
    return integrity.problems(container)
