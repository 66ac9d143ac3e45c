package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const (
	fhirJSON  = "application/fhir+json"
	plainJSON = "application/json"
	noJSON    = "The header Accept must allow application/fhir+json or application/json."
)

// retryOutage is the Retry-After of a 503.
const retryOutage = 5 * time.Second

// statusClientGone is never sent. Logs and metrics use it for a client that disconnected before the answer.
const statusClientGone = 499

// errClientGone marks a failure caused by the client's disconnect. It is not logged as an error.
var errClientGone = errors.New("client disconnected")

// refusal is an error response. It is the only error whose text reaches a client: the text names the parameter or header at
// fault and contains no token, secret or patient id.
type refusal struct {
	status int
	code   string // http://hl7.org/fhir/issue-type
	text   string
	header []string // names and values
}

func (r refusal) Error() string { return r.text }

func refused(status int, code, text string, header ...string) refusal {
	return refusal{status: status, code: code, text: text, header: header}
}

func invalid(text string) refusal { return refused(http.StatusBadRequest, "invalid", text) }

func unsupported(text string) refusal { return refused(http.StatusBadRequest, "not-supported", text) }

func notAcceptable(text string) refusal {
	return refused(http.StatusNotAcceptable, "not-supported", text)
}

func forbidden(text string) refusal { return refused(http.StatusForbidden, "forbidden", text) }

// notAvailable is the response for a job that never existed, was cancelled, has expired, was purged or belongs to another
// owner, and for a file that does not exist (spec 3, pitfall 19). It is byte-identical in all these cases and therefore
// contains nothing of the request.
func notAvailable() refusal {
	return refused(http.StatusNotFound, "forbidden", "The requested export is not available.")
}

// answer turns a handler's error into the response. It is the only place where an error becomes HTTP.
func (s *service) answer(handle func(*gin.Context) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := handle(c); err != nil {
			s.refuse(c, err)
		}
	}
}

// refuse responds with the OperationOutcome of the error (spec 7). Details that the client must not see are only logged.
func (s *service) refuse(c *gin.Context, err error) {
	c.Abort()
	var r refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, errClientGone) || errors.Is(c.Request.Context().Err(), context.Canceled):
		c.Status(statusClientGone)
		// The recorded step may not have happened.
		if err := s.recordRefusal(c, refusal{status: statusClientGone, text: "the client hung up"}); err != nil {
			keepError(c, err)
		}
		panic(http.ErrAbortHandler)
	case errors.Is(err, directory.ErrUnreadable): // no outage: a retry cannot help
		keepError(c, err)
		r = serverError(c, "The definition of this group cannot be read, so it cannot be exported until it is corrected.")
	case errors.Is(err, export.ErrUnavailable), errors.Is(err, context.DeadlineExceeded): // the time of a step was over
		keepError(c, err)
		r = unavailable()
	default:
		keepError(c, err)
		r = serverError(c, "The server could not answer this request.")
	}
	if c.Writer.Written() {
		// The header of a successful response is sent: cut the connection, so that it does not appear complete.
		keepError(c, err)
		panic(http.ErrAbortHandler)
	}
	if err := s.recordRefusal(c, r); err != nil {
		keepError(c, err)
		r = unavailable()
	}
	s.writeProblem(c, r)
}

// serverError is a 500. Its text has the request id, by which the operators find the cause.
func serverError(c *gin.Context, text string) refusal {
	return refused(http.StatusInternalServerError, "exception",
		text+" Its operators find the cause in the log by the request id "+requestID(c)+".")
}

// unavailable is the response while a dependency of the request is unavailable.
func unavailable() refusal {
	return refused(http.StatusServiceUnavailable, "transient",
		"A part of the service is unavailable. Try again later.",
		"Retry-After", inUnits(retryOutage, time.Second))
}

// staleHeaders are the headers of the successful response that a handler had prepared when it failed. A refusal must not
// have them: with the file's validator, a cache or a resumed download would take it for the file.
func staleHeaders() []string {
	return []string{
		"ETag", "Accept-Ranges", "Content-Range", "Content-Encoding", "Content-Disposition", "Repr-Digest", "Expires",
		"X-Progress", "X-Progress-Percent", exportStatusHeader,
	}
}

// writeProblem writes an OperationOutcome. It removes all headers except those of every response.
func (s *service) writeProblem(c *gin.Context, r refusal) {
	header := c.Writer.Header()
	for _, name := range staleHeaders() {
		header.Del(name)
	}
	if r.status != http.StatusNotAcceptable && r.status != http.StatusRequestedRangeNotSatisfiable {
		header.Del("Vary") // 406 and 416 depend on the negotiation
	}
	for i := 0; i < len(r.header); i += 2 {
		header.Set(r.header[i], r.header[i+1])
	}
	writeBody(c, r.status, fhirJSON, encode(fhir.Outcome("error", r.code, r.text)))
}

// encode returns JSON without escaping the & of URLs. Only for values that always encode: lists and maps of strings.
func encode(value any) []byte {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return body.Bytes()
}

// writeBody sends a short response, or only its header for a HEAD request.
func writeBody(c *gin.Context, status int, contentType string, body []byte) {
	c.Header("Content-Type", contentType)
	c.Header("Content-Length", strconv.Itoa(len(body)))
	writeHeader(c, status)
	if c.Request.Method == http.MethodHead {
		return
	}
	if _, err := c.Writer.Write(body); err != nil {
		keepError(c, err) // the client has disconnected
	}
}

// writeHeader sends the header of a response, which may have no body.
func writeHeader(c *gin.Context, status int) {
	c.Status(status)
	c.Writer.WriteHeaderNow()
}

// toClient marks write errors of the client, to distinguish them from read errors of the source.
type toClient struct{ io.Writer }

func (w toClient) Write(part []byte) (int, error) {
	n, err := w.Writer.Write(part)
	if err != nil {
		err = fmt.Errorf("%w: %w", errClientGone, err)
	}
	return n, err
}
