// Package httpapi is the FHIR API of Sluice: kick-off, status, cancel and files (spec 1-5 and 7), and the health probes. It
// authenticates, validates, records, enqueues, answers and streams stored files; it never reads the source's data.
//
// It guarantees: every emitted URL starts with the configured base URL, for any host or proxy of a request; every refusal
// on a FHIR path is an OperationOutcome, made in one place (problem.go); a job of another owner gets the same response as
// an unknown job; 202 means that the job is stored and queued; a download that cannot be finished is cut, so that it does
// not appear complete.
//
// Logs, metrics and responses never contain query strings, tokens or subjects; ids are never metric labels; files and
// manifests are not buffered.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/keyring"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// DialectAuto decides the dialect of each job by its kick-off (spec 9). The other values of Config.Dialect are those of
// export.Dialect, and apply to all jobs.
const DialectAuto = "auto"

// Config configures the API. Only TokenURL is optional.
type Config struct {
	BaseURL *url.URL // public FHIR base, such as https://host/fhir: every emitted URL starts with it
	Dialect string   // auto | classic | ig
	Now     func() time.Time
	Logger  *slog.Logger
	Limits
	// TokenURL is the token endpoint (SMART Backend Services), for discovery; "": not announced. ClientSecrets announces
	// that clients may use secrets there.
	TokenURL      string
	ClientSecrets bool

	RequireGroupScope bool // a kick-off of a group needs a scope that reads Group (Z-13)
	// DataBases are further base URLs whose resources are those of this server, in references of `patient`.
	DataBases []string
}

// Deps are the dependencies of the API. Only NewKey and Tracing are optional.
type Deps struct {
	Jobs     *jobstore.Store
	Queue    *queue.Client
	Objects  *objects.Store
	Tokens   *token.Verifier
	Groups   directory.Groups
	Access   directory.Access
	Keys     *keyring.Keys // sign manifests
	Audit    *audit.Log
	Registry *prometheus.Registry
	Tracing  *telemetry.Tracing // nil: nothing is traced
	// NewKey returns the wrapped data key of a new job (export.Job.Key); nil: jobs are not encrypted.
	NewKey func(export.JobID, export.Owner) []byte
}

// Route templates, below the base URL's path. The last four documents need no token.
const (
	systemRoute   = "/$export"
	patientRoute  = "/Patient/$export"
	kickoffRoute  = "/Group/:group/$export"
	groupsRoute   = "/Group"
	groupRoute    = "/Group/:group"
	statusRoute   = "/exports/:job"
	fileRoute     = "/exports/:job/files/:name"
	attachedRoute = "/exports/:job/attachments/:name"
	metadataRoute = "/metadata"
	smartRoute    = "/.well-known/smart-configuration"
	jwksRoute     = "/.well-known/jwks.json"
	openAPIRoute  = "/openapi.json"
)

// kickoffLevels returns the levels of export by their route templates.
func kickoffLevels() map[string]export.Level {
	return map[string]export.Level{
		systemRoute: export.SystemLevel, patientRoute: export.PatientLevel, kickoffRoute: export.GroupLevel,
	}
}

// Paths of the probes.
const (
	livePath  = "/livez"
	readyPath = "/readyz"
)

// service is shared by the handlers and immutable.
type service struct {
	Config
	Deps
	baseText  string          // the base URL, without a trailing slash
	bases     fhir.Bases      // whose resources are those of this server
	kickoffs  map[string]bool // the kick-off routes, as Gin reports them
	metrics   metrics
	lifecycle *jobs.Lifecycle
	downloads *downloads // of files
	manifests *downloads
	scans     chan struct{} // a place for each reading of a file from its beginning to a range

	// Public documents. The second is nil without Config.TokenURL.
	capabilities, smartDocument, description []byte
}

// New returns the handler of the API's public listener: the FHIR routes below the base URL's path, and /livez and
// /readyz at the root. Private serves metrics and profiles.
func New(cfg Config, deps Deps) (http.Handler, error) {
	s, err := newService(cfg, deps)
	if err != nil {
		return nil, err
	}

	// Gin's mode is process-wide and only decides how much it prints. By default it prints routes and warnings, not through
	// the logger.
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	// Routes are matched on the decoded path, so that $export and %24export are one route (pitfall 35).
	router.UseRawPath = false
	router.HandleMethodNotAllowed = true
	router.RedirectTrailingSlash = false // a redirect would not start with the base URL
	router.RedirectFixedPath = false
	router.ForwardedByClientIP = false
	if err := router.SetTrustedProxies(nil); err != nil {
		return nil, fmt.Errorf("trusting no proxy: %w", err)
	}

	router.Use(s.observe, s.bound, s.plainPath)
	router.NoRoute(s.answer(s.noRoute))
	router.NoMethod(s.answer(s.noMethod))

	// Authentication precedes every handler, so that no response reveals what exists.
	at := strings.TrimSuffix(s.BaseURL.Path, "/")
	operations := router.Group(at, s.authenticate)
	for route, level := range kickoffLevels() {
		operations.GET(route, s.answer(s.kickoff(level)))
		operations.POST(route, s.answer(s.kickoff(level)))
	}
	operations.GET(groupRoute, s.answer(s.readGroup))
	operations.GET(groupsRoute, s.answer(s.searchGroups))
	operations.GET(statusRoute, s.answer(s.status))
	operations.HEAD(statusRoute, s.answer(s.status))
	operations.DELETE(statusRoute, s.answer(s.cancel))
	operations.GET(fileRoute, s.answer(s.file))
	operations.HEAD(fileRoute, s.answer(s.file))
	operations.GET(attachedRoute, s.answer(s.attachment))
	operations.HEAD(attachedRoute, s.answer(s.attachment))

	open := router.Group(at)
	for route, handle := range map[string]func(*gin.Context) error{
		metadataRoute: s.metadata, smartRoute: s.smart, jwksRoute: s.jwks, openAPIRoute: s.openapi,
	} {
		open.GET(route, s.answer(handle))
		open.HEAD(route, s.answer(handle))
	}

	probes := gin.WrapH(health.Probes(deps.Checks(), s.Now))
	for _, probe := range []string{livePath, readyPath} {
		router.GET(probe, probes)
		router.HEAD(probe, probes)
	}
	return router, nil
}

func newService(cfg Config, deps Deps) (*service, error) {
	if err := CheckBase(cfg.BaseURL); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{DialectAuto, string(export.Classic), string(export.IG)}, cfg.Dialect) {
		return nil, fmt.Errorf("dialect %q is none of auto, classic, ig", cfg.Dialect)
	}
	if err := cfg.Limits.check(); err != nil {
		return nil, err
	}
	if cfg.Now == nil || cfg.Logger == nil || deps.Jobs == nil || deps.Queue == nil || deps.Objects == nil ||
		deps.Tokens == nil || deps.Groups == nil || deps.Access == nil || deps.Keys == nil || deps.Audit == nil ||
		deps.Registry == nil {
		return nil, errors.New("httpapi: a dependency is missing")
	}
	bases, err := fhir.NewBases(append([]string{cfg.BaseURL.String()}, cfg.DataBases...)...)
	if err != nil {
		return nil, fmt.Errorf("bases of the data: %w", err)
	}
	s := &service{
		Config: cfg, Deps: deps, baseText: strings.TrimSuffix(cfg.BaseURL.String(), "/"), bases: bases,
		metrics:   newMetrics(deps.Registry),
		lifecycle: &jobs.Lifecycle{Store: deps.Jobs, Queue: deps.Queue, Objects: deps.Objects, Now: cfg.Now},
		downloads: &downloads{what: "files", running: map[export.Owner]int{}},
		manifests: &downloads{what: "manifests", running: map[export.Owner]int{}},
		scans:     make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if cfg.TokenURL != "" {
		s.smartDocument = encode(token.SMARTConfiguration(cfg.TokenURL, cfg.ClientSecrets))
	}
	s.kickoffs = map[string]bool{}
	for route := range kickoffLevels() {
		s.kickoffs[s.template(route)] = true
	}
	s.capabilities = newCapabilities(s.baseText, cfg.TokenURL, cfg.Now())
	s.description = newOpenAPI(s.baseText, cfg.BaseURL.Scheme+"://"+cfg.BaseURL.Host)
	return s, nil
}

// Checks returns the readiness checks of the API's dependencies (pitfall 34). A directory without a check is left out.
func (p Deps) Checks() health.Checks {
	checks := health.Checks{"job_store": p.Jobs.Ping, "queue": p.Queue.Ping, "object_store": p.Objects.Check,
		"signing_keys": p.Keys.Check}
	for name, part := range map[string]any{"groups": p.Groups, "access": p.Access} {
		if checked, ok := part.(interface{ Check(context.Context) error }); ok {
			checks[name] = checked.Check
		}
	}
	return checks
}

// Private returns the handler of the operators' routes: probes, metrics and profiles. Serve it on a listener that
// only operators can reach. Of these routes New serves only the probes.
func Private(deps Deps) http.Handler { return health.Handler(deps.Checks(), deps.Registry) }

// CheckBase refuses a base URL that cannot be a prefix of every emitted URL. New calls it; it is exported for
// --check-config.
func CheckBase(base *url.URL) error {
	switch {
	case base == nil:
		return errors.New("base URL is missing")
	case base.Scheme != "http" && base.Scheme != "https":
		return fmt.Errorf("base URL has scheme %q, not http or https", base.Scheme)
	case base.Host == "":
		return errors.New("base URL has no host")
	case base.User != nil || base.RawQuery != "" || base.ForceQuery || base.Fragment != "":
		return errors.New("base URL has a user, a query or a fragment")
	case strings.ContainsAny(base.Path, ":*"):
		return errors.New("base URL's path has a ':' or '*'")
	case hidesSlash(base):
		return errors.New("base URL's path has an encoded '/'")
	case base.Path != "" && path.Clean(base.Path) != strings.TrimSuffix(base.Path, "/") && base.Path != "/":
		return errors.New("base URL's path is not clean")
	}
	return nil
}

const (
	maxURL  = 8 << 10  // bytes of path and query: all type names together are about 3 KiB
	maxBody = 64 << 10 // of a request that is no kick-off
)

// bound refuses requests that are larger than any valid request, before they are read.
func (s *service) bound(c *gin.Context) {
	limit := int64(maxBody)
	if s.isKickOff(c) {
		limit = maxKickOffBody
	}
	switch {
	case len(c.Request.RequestURI) > maxURL:
		s.refuse(c, refused(http.StatusRequestURITooLong, "too-long",
			fmt.Sprintf("The request's URL is longer than %d bytes.", maxURL)))
	case c.Request.ContentLength > limit:
		s.refuse(c, bodyTooLong(limit))
	}
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, limit)
}

// plainPath refuses paths with an encoded slash. Routes are matched on the decoded path, where such a slash would divide
// segments: Group/g1%2F$export names a group "g1/$export", not an export of g1.
func (s *service) plainPath(c *gin.Context) {
	if hidesSlash(c.Request.URL) {
		s.refuse(c, s.noRoute(c))
	}
}

func hidesSlash(u *url.URL) bool { return strings.Contains(strings.ToUpper(u.EscapedPath()), "%2F") }

// template is a route in the form in which Gin reports it.
func (s *service) template(route string) string { return path.Join("/", s.BaseURL.Path, route) }

// isKickOff reports whether the request's route and method start an export.
func (s *service) isKickOff(c *gin.Context) bool { return s.kickoffs[c.FullPath()] }

// statusURL is the one URL of a job: status, cancel and, below it, its files.
func (s *service) statusURL(job export.JobID) string { return s.baseText + "/exports/" + string(job) }

func (s *service) fileURL(job export.JobID, name string) string {
	return s.statusURL(job) + "/files/" + url.PathEscape(name)
}

// noRoute names the mistakes that URLs joined by hand often have. It does not redirect: many clients do not send the token
// again.
func (s *service) noRoute(c *gin.Context) error {
	text := "Unknown path."
	switch path := c.Request.URL.Path; {
	case strings.Contains(path, "//"):
		text += " It has a doubled slash."
	case len(path) > 1 && strings.HasSuffix(path, "/"):
		text += " It ends with a slash."
	}
	return refused(http.StatusNotFound, "not-found", text+" An export starts with GET or POST "+s.baseText+
		"/Group/[id]/$export, /Patient/$export or /$export.")
}

func (s *service) noMethod(c *gin.Context) error {
	// Gin lists the methods in the order in which they were registered.
	allowed := strings.Split(c.Writer.Header().Get("Allow"), ", ")
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	return refused(http.StatusMethodNotAllowed, "not-supported",
		"The method is not supported at this path. Supported: "+allow+".", "Allow", allow)
}
