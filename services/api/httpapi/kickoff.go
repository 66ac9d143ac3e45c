package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// stepTimeout bounds a step that continues after its client has disconnected. The stores time out sooner.
const stepTimeout = 20 * time.Second

// groupIDForm is FHIR's form of an id.
var groupIDForm = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)

// kickoff starts the export of a group (spec 1): a few writes and one enqueue for a group of any size (pitfall 12).
func (s *service) kickoff(c *gin.Context) (err error) {
	ctx, span := s.Tracing.Begin(c.Request.Context(), "kick-off", trace.WithSpanKind(trace.SpanKindServer))
	c.Request = c.Request.WithContext(ctx)
	defer func() { endKickOff(c, span, err) }()
	dialect, err := s.chooseDialect(c.Request.Header)
	if err != nil {
		return err
	}
	asked, err := parseParameters(c.Request.URL.RawQuery)
	if err != nil {
		return err
	}
	if err := s.refuseWhilePaused(c); err != nil {
		return err
	}
	if err := s.limit(c, "kickoff", "kick-offs", s.KickOffLimit); err != nil {
		return err
	}
	who := principalOf(c)
	if s.RequireGroupScope && !who.Scopes.MayRead("Group") { // before the lookup, so the answer discloses nothing
		return forbidden("The token has no scope that reads Group, which this server requires for an export.")
	}
	grant, err := s.Access.Grant(c.Request.Context(), who.Owner)
	if err != nil {
		return fmt.Errorf("reading the grant of owner %s: %w", who.Owner.Hash(), err)
	}
	group := c.Param("group")
	if err := s.checkGroup(c.Request.Context(), group, grant); err != nil {
		return err
	}
	types, err := allowedTypes(asked.types, who.Scopes, grant)
	if err != nil {
		return err
	}

	job := export.Job{
		ID:    export.NewJobID(),
		Owner: who.Owner,
		Request: export.Request{
			URL: s.requestURL(c.Request, group), GroupID: group, Types: types, Dialect: dialect,
		},
		State:   export.Scheduled,
		Created: s.Now().UTC().Truncate(time.Millisecond),
		Trace:   telemetry.TraceParent(ctx),
	}
	if s.NewKey != nil {
		job.Key = s.NewKey(job.ID, job.Owner)
	}
	admission := jobstore.Admission{Limit: s.JobLimit, Join: s.Repeat == repeatSame}
	admitted, err := s.lifecycle.Start(ctx, job, admission, func(admitted export.JobID) error {
		if admitted == job.ID { // joining a running export takes no place
			if err := s.checkQuota(context.WithoutCancel(ctx), who.Owner); err != nil {
				return err
			}
		}
		noteJob(c, admitted)
		event := succeeded(audit.KickOff, admitted, http.StatusAccepted)
		event.Target, event.Types = "Group/"+group, types
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
	writeHeader(c, http.StatusAccepted)
	return nil
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

// checkGroup returns the same refusal for an unknown group and for one outside the grant, which hides whether it exists.
func (s *service) checkGroup(ctx context.Context, group string, grant directory.Grant) error {
	noGroup := refused(http.StatusNotFound, "not-found", "There is no such Group, or it may not be exported with this token.")
	if !groupIDForm.MatchString(group) || !grant.Groups.Has(group) {
		return noGroup
	}
	err := s.Groups.Exists(ctx, group)
	if errors.Is(err, directory.ErrNoGroup) {
		return noGroup
	}
	if err != nil {
		return fmt.Errorf("looking up the group: %w", err)
	}
	return nil
}

// allowedTypes applies the token's scopes and the owner's grant. If a requested type is not allowed, the request is refused
// (spec 1, lenient or not). Without requested types it returns every allowed type.
func allowedTypes(asked []string, scopes token.Scopes, grant directory.Grant) ([]string, error) {
	may := func(typ string) bool { return scopes.MayRead(typ) && grant.Types.Has(typ) }
	if asked != nil {
		if denied := slices.DeleteFunc(slices.Clone(asked), may); len(denied) > 0 {
			return nil, forbidden("The parameter _type names types that may not be exported with this token: " +
				list(denied) + ".")
		}
		return asked, nil
	}
	allowed := slices.DeleteFunc(fhir.ExportableTypes(), func(typ string) bool { return !may(typ) })
	if !slices.ContainsFunc(allowed, fhir.InCompartment) {
		return nil, forbidden("No resource type may be exported with this token.")
	}
	return allowed, nil
}

// requestURL is the URL of the client's request on the public base. It keeps the client's spelling of $export and its
// query, because clients compare it with the URL that they sent (M-02). The group is an id and needs no escape.
func (s *service) requestURL(r *http.Request, group string) string {
	escaped := r.URL.EscapedPath()
	operation := escaped[strings.LastIndexByte(escaped, '/')+1:]
	full := s.baseText + "/Group/" + group + "/" + operation
	if r.URL.RawQuery != "" {
		full += "?" + r.URL.RawQuery
	}
	return full
}
