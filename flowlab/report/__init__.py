"""Reports: tables and figures in, one document out, as HTML and as Markdown.

``contents.gather`` reads a results folder into a :class:`~flowlab.report.document.Document`;
``html.render`` and ``markdown.render`` write it. The same results give the same text.
"""

from flowlab.report.contents import gather
from flowlab.report.document import Document

__all__ = ["Document", "gather"]
