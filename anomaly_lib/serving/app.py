"""The addresses of the server and what each answers."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from anomaly_lib.data.images import TooManyPixels
from anomaly_lib.detect.shown import Shown
from anomaly_lib.errors import UserError
from anomaly_lib.serving.answers import columns_of, described, pictures_of, result_of, row_of
from anomaly_lib.serving.guard import FAILED, Guard, Refused, one_line
from anomaly_lib.serving.metrics import Metrics
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.records import Records
from anomaly_lib.serving.service import Full, Service
from anomaly_lib.serving.uploads import Upload, shown_name
from anomaly_lib.serving.watch import Watch

Overlay = Literal["false", "true", "layers"]
Truth = Literal["good", "bad"]
T = TypeVar("T")
GONE = 499  # the client has left; nobody reads the answer


class Server:
    """Detectors by name, what stays of their work, and the application that hands requests to them."""

    def __init__(self, services: Mapping[str, Service], records: Records, args: ServeArgs) -> None:
        self.services, self.records, self.args, self.metrics = services, records, args, Metrics()
        self.histories = {name: records.history(name, columns_of(service)) for name, service in services.items()}
        self.watch = Watch(services)
        self.stop: Callable[[], None] = lambda: None  # ends the server that runs it
        self.pages = ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self.page = files("anomaly_lib.serving").joinpath("page.html").read_text(encoding="utf-8")
        app = FastAPI(title="anomaly_lib", docs_url=None, redoc_url=None)
        for path, answer, methods in (
            ("/predict", self.predict, ["POST"]),
            ("/mark", self.mark, ["POST"]),
            ("/models", self.models, ["GET"]),
            ("/history", self.history, ["GET"]),
            ("/health", self.health, ["GET"]),
        ):
            app.add_api_route(path, answer, methods=methods, response_model=None)
        app.add_api_route("/metrics", self.counts, methods=["GET"], response_class=PlainTextResponse)
        app.add_api_route("/", self.start, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(RequestValidationError, _bad_query)
        app.add_exception_handler(HTTPException, _bad_request)
        app.add_exception_handler(Exception, _failed)
        self.app = Guard(
            app,  # type: ignore[arg-type]
            host=args.host,
            token=args.token,
            most_bytes=args.upload_mib * 2**20,
            note=self.metrics.request,
        )

    # -- detectors -------------------------------------------------------------------------------------------------

    async def predict(self, request: Request, model: str | None = None, overlay: Overlay = "false") -> Response:
        """Score the images of a request: files of a form, or one image as the body."""
        service = self.chosen(model)
        uploads = await uploads_of(request)
        found = await self.answers(request, service, uploads, picture=overlay != "false")
        results = []
        for upload, one in zip(uploads, found, strict=True):
            if not self.histories[service.name].holds(upload.sha):
                self.watch.part(service.name, one.score.item())
            self.histories[service.name].add({"name": upload.name, "sha": upload.sha, **row_of(one)})
            self.metrics.image(service.name, None if one.anomalous is None else bool(one.anomalous[0]))
            result = result_of(upload.name, upload.sha, one)
            if overlay != "false":
                result |= await self.aside(lambda one=one: pictures_of(one, overlay))  # type: ignore[misc]
            results.append(result)
        remarks = service.detector.facts.remarks()
        more = {"remarks": remarks} if remarks else {}
        return JSONResponse({"model": service.name, "results": results, **more, **self.watch.told(service.name)})

    async def mark(self, request: Request, truth: Truth, model: str | None = None) -> Response:
        """Keep images as good or bad ones, for `calibrate` and `fit`."""
        service = self.chosen(model)
        uploads = await uploads_of(request)
        found = await self.answers(request, service, uploads)
        for upload, one in zip(uploads, found, strict=True):
            row = {"model": service.name, "score": one.score.item(), "name": upload.name}
            await self.aside(
                lambda u=upload, row=row: self.records.marks.mark(u.content, u.sha, u.suffix, truth, row)  # type: ignore[misc]
            )
        return JSONResponse({"marked": truth, "images": len(uploads), **self.records.marks.counts()})

    async def answers(
        self, request: Request, service: Service, uploads: list[Upload], *, picture: bool = False
    ) -> list[Shown]:
        """The prediction of each image, unless one of them is refused or the client leaves."""
        if len(uploads) > service.queue:
            raise Refused(413, f"{len(uploads)} images in one request; at most {service.queue} are taken")
        waiting: list[asyncio.Future[Shown]] = []
        try:
            with service.places(len(uploads)):
                waiting += [asyncio.wrap_future(service.submit(one, picture=picture)) for one in uploads]
                found = await _unless_gone(request, asyncio.gather(*waiting))
        except Full:
            raise Refused(429, f"{service.queue} images are waiting; ask again in a second", Retry_After="1") from None
        except TooManyPixels as error:
            raise Refused(413, str(error)) from None
        except UserError as error:
            raise Refused(422, str(error)) from None
        finally:
            for one_waiting in waiting:  # of a request that is refused
                one_waiting.cancel()
        return found

    def chosen(self, model: str | None) -> Service:
        """The detector that is asked; without a name the first."""
        if model is None:
            return next(iter(self.services.values()))
        if model not in self.services:
            raise Refused(404, f"model={model[:100]}: there are {', '.join(self.services)}")
        return self.services[model]

    async def aside(self, work: Callable[[], T]) -> T:
        """Work on another thread, so that other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self.pages, work)

    # -- looking around --------------------------------------------------------------------------------------------

    async def models(self) -> Response:
        """What is served, and how it decides."""
        return JSONResponse({"models": [described(service) for service in self.services.values()]})

    async def history(self, model: str | None = None) -> Response:
        """The last predictions of the day, newest first, with what a person has said of them."""
        name, marks = self.chosen(model).name, self.records.marks
        rows = self.histories[name].today()
        for row in rows:
            truth = marks.truth_of(row["sha"])
            row |= {} if truth is None else {"truth": truth}
        return JSONResponse({"model": name, "rows": rows, "marked": marks.counts(), **self.watch.told(name)})

    async def health(self) -> Response:
        """Are all detectors at work, and are parts still like the normal data of the decisions?"""
        well = all(service.alive for service in self.services.values())
        said = {
            "status": "ok" if well else "a detector has stopped",
            **({"drift": self.watch.found} if self.watch.found else {}),
        }
        return JSONResponse(said, status_code=200 if well else 503)

    async def counts(self) -> Response:
        """Figures for Prometheus."""
        waiting = {name: one.waiting for name, one in self.services.items()}
        batches = {name: one.batches for name, one in self.services.items()}
        return PlainTextResponse(
            self.metrics.text(waiting, batches, self.watch.counts()), media_type="text/plain; version=0.0.4"
        )

    async def start(self) -> Response:
        """The page. Nothing of it comes from elsewhere, and nothing but its own script runs."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
            "media-src blob: mediastream:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"content-security-policy": policy, "permissions-policy": "camera=(self), microphone=()"}
        return HTMLResponse(self.page.replace("@NONCE@", nonce), headers=headers)


async def uploads_of(request: Request) -> list[Upload]:
    """The files of a form, whatever their fields are called, or the body itself."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=1000, max_fields=100) as form:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            found = [Upload(shown_name(part.filename), await part.read()) for part in parts]
    else:
        content = await request.body()
        found = [Upload(shown_name(request.query_params.get("name")), content)] if content else []
    if not found:
        raise Refused(400, "no image in the request; send -F file=@part.png or --data-binary @part.png")
    return found


async def _unless_gone(request: Request, work: "asyncio.Future[list[Shown]]") -> list[Shown]:
    """The outcome of the work; it is called off when the client leaves before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(left())
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if not work.done():
            raise Refused(GONE, "the client has left")
        return work.result()
    finally:
        leaving.cancel()
        work.cancel()


def _said(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(one_line(why), status_code=status, headers=headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _said(error.status, error.why, error.headers)


async def _bad_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _said(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = {404: "there are /predict, /mark, /models, /history, /health and /metrics", 405: "another method is needed"}
    return _said(error.status_code, f"{request.url.path[:100]}: {why.get(error.status_code, error.detail)}")


async def _failed(_: Request, __: Exception) -> Response:
    return _said(500, FAILED)
