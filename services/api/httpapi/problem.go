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
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const (
	fhirJSON  = "application/fhir+json"
	plainJSON = "application/json"
	noJSON    = "The header Accept allows neither application/fhir+json nor application/json."
)

// retryOutage is what a 503 asks for: in the dialect of the caller's job when the request is about one (spec 3 and 9),
// and in seconds (RFC 9110) when it is not, or while the job store is down and the job's owner is unknown.
const retryOutage = 5 * time.Second

// statusClientGone is never sent. Logs and metrics use it for a client that disconnected before the answer.
const statusClientGone = 499

// errClientGone marks a failure caused by the client's disconnect. It is not logged as an error.
var errClientGone = errors.New("client disconnected")

// refusal is an answer that is not what the client asked for. It is the only error that reaches a client as it is:
// its text is written for the client, names the parameter or header at fault and holds no token, secret or patient
// id.
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

// notAvailable is the one answer for a job that never existed, was cancelled, expired, purged or belongs to somebody
// else, and for a file that such a job or any other does not have (spec 3, pitfall 19). It is byte-identical in all
// these cases, which is why it carries nothing of the request.
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

// refuse answers with the OperationOutcome of the error (spec 7). Details that the client may not see go to the request's
// log line.
func (s *service) refuse(c *gin.Context, err error) {
	c.Abort()
	var r refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, errClientGone) || errors.Is(c.Request.Context().Err(), context.Canceled):
		c.Status(statusClientGone)
		// The step that is on record as done may not have happened.
		if err := s.recordRefusal(c, refusal{status: statusClientGone, text: "the client hung up"}); err != nil {
			keepError(c, err)
		}
		panic(http.ErrAbortHandler)
	case errors.Is(err, export.ErrUnavailable):
		keepError(c, err)
		r = s.unavailable(c)
	default:
		keepError(c, err)
		r = refused(http.StatusInternalServerError, "exception", "The server could not answer this request. Its operators "+
			"find the cause by the request id "+requestID(c)+".")
	}
	if c.Writer.Written() {
		// The answer has begun as a good one: all that is left is to keep it from ending like one.
		keepError(c, err)
		panic(http.ErrAbortHandler)
	}
	if err := s.recordRefusal(c, r); err != nil {
		keepError(c, err)
		r = s.unavailable(c)
	}
	s.writeProblem(c, r)
}

// unavailable is the answer while something is down that the request needs.
func (s *service) unavailable(c *gin.Context) refusal {
	return refused(http.StatusServiceUnavailable, "transient",
		"A part of the service cannot be reached at the moment. Try again later.",
		"Retry-After", retryAfter(export.Dialect(c.GetString(dialectKey)), retryOutage))
}

// staleHeaders describe the good answer that a handler was about to give when it failed. A refusal is no representation
// of that resource: with its validator a cache or a resumed download would take the one for the other.
func staleHeaders() []string {
	return []string{
		"ETag", "Accept-Ranges", "Content-Range", "Content-Encoding", "Repr-Digest", "Expires", "X-Progress",
		"X-Progress-Percent",
	}
}

// writeProblem writes an OperationOutcome. Of what was set before, only the headers stay that every answer has.
func (s *service) writeProblem(c *gin.Context, r refusal) {
	header := c.Writer.Header()
	for _, name := range staleHeaders() {
		header.Del(name)
	}
	if r.status != http.StatusNotAcceptable && r.status != http.StatusRequestedRangeNotSatisfiable {
		header.Del("Vary") // a 406 and a 416 do depend on the negotiation
	}
	for i := 0; i < len(r.header); i += 2 {
		header.Set(r.header[i], r.header[i+1])
	}
	writeBody(c, r.status, fhirJSON, encode(fhir.Outcome("error", r.code, r.text)))
}

// encode writes JSON and leaves the & of URLs readable. It is for values that always encode: lists and maps of strings.
func encode(value any) []byte {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return body.Bytes()
}

// writeBody sends a short answer, or only its headers when the request is a HEAD.
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

// writeHeader sends the header of an answer, which may be all of it.
func writeHeader(c *gin.Context, status int) {
	c.Status(status)
	c.Writer.WriteHeaderNow()
}

// toClient marks the errors of writing to the client, to tell them from those of reading what is written.
type toClient struct{ io.Writer }

func (w toClient) Write(part []byte) (int, error) {
	n, err := w.Writer.Write(part)
	if err != nil {
		err = fmt.Errorf("%w: %w", errClientGone, err)
	}
	return n, err
}
