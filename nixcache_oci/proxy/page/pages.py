"""What all pages share."""

from nixcache_oci.proxy.page.jobs import PageJobs
from nixcache_oci.proxy.page.recorded import RecordedKeepers
from nixcache_oci.proxy.page.templates import Templates


class Pages:
    """Runs the jobs of pages, remembers records, and writes templates."""

    def __init__(self) -> None:
        self.jobs = PageJobs()
        self.keepers = RecordedKeepers(self.jobs)
        self.templates = Templates(self.jobs)
