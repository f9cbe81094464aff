"""Which blob store a deployment uses: a bucket where one is set, else what comes with its log."""

from libs.events.blobs import Blobs
from libs.settings import Settings


def blobs_by_setting(settings: Settings, others: Blobs) -> Blobs:
    """A bucket over `others`, which keep what was stored before it was set; or `others` alone."""
    if settings.s3 is None:
        return others
    from libs.events.s3 import Bucket, S3Blobs  # here: who has no bucket loads nothing for it

    found = settings.s3
    name, _, prefix = found.bucket.partition("/")
    bucket = Bucket(
        endpoint=found.endpoint,
        name=name,
        prefix=f"{prefix.rstrip('/')}/" if prefix else "",
        region=found.region,
        access_key=found.access_key,
        secret_key=found.secret_key,
    )
    return S3Blobs(bucket, others)
