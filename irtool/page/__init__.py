"""Pages that need nothing but themselves: data in, one HTML file out."""

from irtool.page.build import diff_page, run_page, view_page

__all__ = ["diff_page", "run_page", "view_page"]
