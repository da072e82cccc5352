"""S3, or a server with its API, for the artifact store and the data sets.

botocore signs, retries and speaks HTTP. This package adds what it leaves open: a body that breaks off is continued,
large objects go in parts, a conditional write recognizes its own object after its answer was lost, and every failure
has one message. botocore takes a third of a second to import, so nothing imports this package that needs no S3.
"""

from include.artifacts.s3.access import Access
from include.artifacts.s3.bucket import Bucket

__all__ = ["Access", "Bucket"]
