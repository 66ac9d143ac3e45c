package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// stepTimeout bounds a step that continues after its client has disconnected. The stores time out sooner.
const stepTimeout = 20 * time.Second

// groupIDForm is FHIR's form of an id.
var groupIDForm = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)

// kickoff returns the handler that starts an export of the level (spec 1, L-01 to L-03): a few writes and one enqueue for a
// group of any size (pitfall 12).
func (s *service) kickoff(level export.Level) func(*gin.Context) error {
	return func(c *gin.Context) error { return s.start(c, level) }
}

func (s *service) start(c *gin.Context, level export.Level) (err error) {
	ctx, span := s.Tracing.Begin(c.Request.Context(), "kick-off", trace.WithSpanKind(trace.SpanKindServer))
	c.Request = c.Request.WithContext(ctx)
	defer func() { endKickOff(c, span, err) }()
	dialect, err := s.chooseDialect(c.Request.Header)
	if err != nil {
		return err
	}
	a := asking{level: level, lenient: prefersLenient(c.Request.Header), patientOf: s.patientOf}
	asked, err := parseParameters(a, c.Request)
	if err != nil {
		return err
	}
	if err := s.refuseWhilePaused(c); err != nil {
		return err
	}
	if err := s.limit(c, "kickoff", "kick-offs", s.KickOffLimit); err != nil {
		return err
	}
	who, group := principalOf(c), c.Param("group") // no group at the other levels
	request, patients, err := s.permitted(c.Request.Context(), who, group, a, &asked)
	if err != nil {
		return err
	}
	request.URL, request.Dialect, request.Ignored = s.requestURL(c.Request, level, group), dialect, asked.ignored
	request.SeparateStatus = prefersSeparateStatus(c.Request.Header)

	job := export.Job{
		ID:      export.NewJobID(),
		Owner:   who.Owner,
		Request: request,
		State:   export.Scheduled,
		Created: s.Now().UTC().Truncate(time.Millisecond),
		Trace:   telemetry.TraceParent(ctx),
	}
	if s.NewKey != nil {
		job.Key = s.NewKey(job.ID, job.Owner)
	}
	admission := jobstore.Admission{Limit: s.JobLimit, Join: s.Repeat == repeatSame}
	admitted, err := s.lifecycle.Start(ctx, job, patients, admission, func(admitted export.JobID) error {
		if admitted == job.ID { // joining a running export takes no place
			if err := s.checkQuota(context.WithoutCancel(ctx), who.Owner); err != nil {
				return err
			}
		}
		noteJob(c, admitted)
		event := succeeded(audit.KickOff, admitted, http.StatusAccepted)
		event.Target, event.Types, event.Params = targetOf(level, group), request.Types, asked.names
		return s.recordEvent(c, event)
	})
	var full jobstore.FullError
	if errors.As(err, &full) {
		return s.full(ctx, full.Running)
	}
	if err != nil {
		return fmt.Errorf("start the job: %w", err)
	}
	c.Header("Content-Location", s.statusURL(admitted))
	if request.SeparateStatus {
		c.Header("Preference-Applied", "respond-async, "+separateStatus)
	}
	writeHeader(c, http.StatusAccepted)
	return nil
}

// permitted decides what the owner may export of what is asked: the level, the group, the types and the patients. It
// returns the request with these and with what else the parameters ask for, and the patients that it is limited to.
func (s *service) permitted(
	ctx context.Context, who token.Principal, group string, a asking, p *parameters,
) (request export.Request, patients []string, err error) {
	// Before the lookup, so that the answer discloses nothing.
	if a.level == export.GroupLevel && s.RequireGroupScope && !who.Scopes.MayRead("Group") {
		return request, nil, forbidden("The token has no scope that reads Group, which this server requires for an export.")
	}
	grant, err := s.Access.Grant(ctx, who.Owner)
	if err != nil {
		return request, nil, fmt.Errorf("reading the grant of owner %s: %w", who.Owner.Hash(), err)
	}
	if err := s.checkLevel(ctx, a.level, group, grant); err != nil {
		return request, nil, err
	}
	request = export.Request{
		Level: a.level, GroupID: group, Elements: p.elements, Until: p.until, Associated: p.associated,
		OrganizedBy: p.organizedBy, Partial: p.partial,
	}
	request.Types, request.Through, err = allowedTypes(a.level, p.types, who.Scopes, grant)
	if err == nil && p.associated != "" {
		request.Types, request.Through, err = withProvenance(request.Types, request.Through, who.Scopes, grant)
	}
	if err != nil {
		return request, nil, err
	}
	request.Since, request.After, err = s.window(ctx, who.Owner, request, a, p)
	if err != nil {
		return request, nil, err
	}
	request.Filters, err = p.filtersOf(a, request.Types)
	if err != nil {
		return request, nil, err
	}
	patients, err = s.knownPatients(ctx, who, group, p, a)
	return request, patients, err
}

// endKickOff ends the root span of the job. If there is no job, the span has the status of the refusal.
func endKickOff(c *gin.Context, span trace.Span, err error) {
	if job := c.GetString(jobIDKey); job != "" {
		span.SetAttributes(attribute.String("sluice.job_id", job))
	}
	var refused refusal
	if errors.As(err, &refused) {
		span.SetAttributes(attribute.Int("http.response.status_code", refused.status))
		err = nil // a refusal is not a failure of the service
	}
	noteTrace(c, telemetry.TraceParent(trace.ContextWithSpan(c.Request.Context(), span)))
	telemetry.EndSpan(span, err)
}

// kickOffTypes are the types of which Accept has to allow one. A success has no body, so this is about a refusal. Many
// clients name the type of the files, or that of JSON before R4.
func kickOffTypes() []string {
	return []string{fhirJSON, plainJSON, "application/json+fhir", "application/fhir+ndjson", "application/ndjson",
		"application/x-ndjson"}
}

// chooseDialect decides the dialect of the job's responses (spec 9), and refuses clients that do not accept them.
func (s *service) chooseDialect(header http.Header) (export.Dialect, error) {
	async := prefersAsync(header)
	if s.Dialect != string(export.IG) {
		if !accepts(header, kickOffTypes()...) {
			return "", notAcceptable(noJSON)
		}
	} else {
		switch {
		case !accepts(header, fhirJSON, plainJSON):
			return "", notAcceptable(noJSON)
		case len(mediaRanges(header)) == 0:
			return "", invalid("The header Accept is required, with application/fhir+json.")
		case !namesType(header, fhirJSON, plainJSON):
			return "", notAcceptable("The header Accept must name application/fhir+json or application/json.")
		case !async:
			return "", invalid("The header Prefer is required, with respond-async.")
		}
	}
	switch {
	case s.Dialect != DialectAuto:
		return export.Dialect(s.Dialect), nil
	case async:
		return export.IG, nil
	}
	return export.Classic, nil
}

// checkLevel refuses a level that the grant does not allow. At the group level the refusal is the same for an unknown
// group, for one outside the grant and for a grant without the level, which hides whether the group exists.
func (s *service) checkLevel(ctx context.Context, level export.Level, group string, grant directory.Grant) error {
	if level != export.GroupLevel {
		if !grant.Levels.Has(level) {
			return forbidden("Exports of the " + string(level) + " level may not be started with this token.")
		}
		return nil
	}
	if !groupIDForm.MatchString(group) || !grant.Groups.Has(group) || !grant.Levels.Has(level) {
		return noGroup()
	}
	err := s.Groups.Exists(ctx, group)
	if errors.Is(err, directory.ErrNoGroup) {
		return noGroup()
	}
	if err != nil {
		return fmt.Errorf("looking up the group: %w", err)
	}
	return nil
}

func noGroup() refusal {
	return refused(http.StatusNotFound, "not-found", "There is no such Group, or it may not be exported with this token.")
}

// targetOf names what is exported: the path of the operation, and "System" for the system level.
func targetOf(level export.Level, group string) string {
	switch level {
	case export.GroupLevel:
		return "Group/" + group
	case export.PatientLevel:
		return "Patient"
	case export.SystemLevel:
	}
	return "System"
}

// requestURL is the URL of the client's request on the public base. It keeps the client's spelling of $export and its
// query, because clients compare it with the URL that they sent (M-02). Parameters of a body are not in it. The group is an
// id and needs no escape.
func (s *service) requestURL(r *http.Request, level export.Level, group string) string {
	escaped := r.URL.EscapedPath()
	full := s.baseText + "/"
	if level != export.SystemLevel {
		full += targetOf(level, group) + "/"
	}
	full += escaped[strings.LastIndexByte(escaped, '/')+1:]
	if r.URL.RawQuery != "" {
		full += "?" + r.URL.RawQuery
	}
	return full
}
