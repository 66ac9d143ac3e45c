// Package httpapi is the FHIR face of Sluice: kick-off, status, cancel and files (spec 1-5 and 7), and the probes that
// tell a balancer where to send requests. It authenticates, validates, records, enqueues, answers and streams stored files;
// it never touches the source's data.
//
// Promised: every URL it emits starts with the configured base URL, whatever host or proxy a request came through;
// every refusal on a FHIR path is an OperationOutcome, made in one place (problem.go); a job that is not the caller's
// is answered exactly like one that never was; a 202 is never given for a job that is not stored and queued; a
// download that cannot be finished is cut off and never ends as if it were whole.
//
// Refused: query strings, tokens and subjects in logs, metrics and answers; ids as metric labels; buffering of files
// and manifests.
package httpapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// DialectAuto decides the dialect of each job by its kick-off (spec 9). The other values of Config.Dialect are those
// of export.Dialect, which force one.
const DialectAuto = "auto"

// defaultPollLimit is how many status requests a client may make within the interval that Retry-After announces: one
// is expected, and test suites that pace themselves make a few more.
const defaultPollLimit = 10

// Config says how the API answers.
type Config struct {
	BaseURL   *url.URL         // public FHIR base, such as https://host/fhir: every emitted URL starts with it
	Dialect   string           // auto | classic | ig; empty is auto
	Now       func() time.Time // nil is time.Now
	Logger    *slog.Logger     // nil discards
	PollLimit int              // polls of a running job within one announced Retry-After; 0 is 10
	Limits    Limits           // of each subject
	// SMART describes where clients get their tokens by SMART Backend Services, for discovery; nil when they know it from
	// elsewhere.
	SMART *token.SMART

	RequireGroupScope bool // a kick-off needs a scope that reads Group (Z-13)
}

// Parts is what the API works with. All are needed but NewKey and Tracing.
type Parts struct {
	Jobs     *jobstore.Store
	Queue    *queue.Client
	Objects  *objects.Store
	Tokens   *token.Verifier
	Groups   directory.Groups
	Access   directory.Access
	Audit    *audit.Log
	Registry *prometheus.Registry
	Tracing  *telemetry.Tracing        // nil: nothing is traced
	NewKey   func(export.JobID) []byte // the wrapped data key of a new job (export.Job.Key); nil: jobs are not encrypted
}

// Route templates, below the base URL's path.
const (
	kickoffRoute = "/Group/:group/$export"
	statusRoute  = "/exports/:job"
	fileRoute    = "/exports/:job/files/:name"
)

// service holds what the handlers share. It never changes once made.
type service struct {
	Parts
	base      *url.URL
	baseText  string // the base URL as it is emitted, without a trailing slash
	dialect   string
	now       func() time.Time
	log       *slog.Logger
	pollLimit int
	limits    Limits
	needGroup bool // see Config.RequireGroupScope
	metrics   *metrics

	capabilities, smartDocument document
}

// New returns the handler of the API's public listener: the FHIR routes below the base URL's path, and /livez and
// /readyz at the root. Metrics and profiles are not for everybody: Private serves them, elsewhere.
func New(cfg Config, parts Parts) (http.Handler, error) {
	s, err := newService(cfg, parts)
	if err != nil {
		return nil, err
	}

	// Gin's mode is a process-wide switch that only decides how much it prints. It prints routes and warnings past
	// the logger by default.
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	// Routes are matched on the decoded path: that is what makes $export and %24export one route (pitfall 35).
	router.UseRawPath = false
	router.HandleMethodNotAllowed = true
	router.RedirectTrailingSlash = false // a redirect would go to a URL that the base URL did not make
	router.RedirectFixedPath = false
	router.ForwardedByClientIP = false
	if err := router.SetTrustedProxies(nil); err != nil {
		return nil, fmt.Errorf("trusting no proxy: %w", err)
	}

	router.Use(s.observe, s.bound, s.plainPath)
	router.NoRoute(s.answer(s.noRoute))
	router.NoMethod(s.answer(s.noMethod))

	// Authentication comes before anything a handler does, and so before any hint of what exists.
	fhir := router.Group(strings.TrimSuffix(s.base.Path, "/"), s.authenticate)
	fhir.GET(kickoffRoute, s.answer(s.kickoff))
	fhir.GET(statusRoute, s.answer(s.status))
	fhir.HEAD(statusRoute, s.answer(s.status))
	fhir.DELETE(statusRoute, s.answer(s.cancel))
	fhir.GET(fileRoute, s.answer(s.file))
	fhir.HEAD(fileRoute, s.answer(s.file))

	// What a client reads before it has a token.
	open := router.Group(strings.TrimSuffix(s.base.Path, "/"))
	for route, handle := range map[string]func(*gin.Context) error{metadataRoute: s.metadata, smartRoute: s.smart} {
		open.GET(route, s.answer(handle))
		open.HEAD(route, s.answer(handle))
	}

	probes := gin.WrapH(health.Probes(parts.Checks(), s.now))
	for _, probe := range []string{livePath, readyPath} {
		router.GET(probe, probes)
		router.HEAD(probe, probes)
	}
	return router, nil
}

func newService(cfg Config, parts Parts) (*service, error) {
	base := cfg.BaseURL
	if err := CheckBase(base); err != nil {
		return nil, err
	}
	if cfg.Dialect == "" {
		cfg.Dialect = DialectAuto
	}
	if !slices.Contains([]string{DialectAuto, string(export.Classic), string(export.IG)}, cfg.Dialect) {
		return nil, fmt.Errorf("dialect %q is none of auto, classic, ig", cfg.Dialect)
	}
	if cfg.PollLimit < 0 {
		return nil, fmt.Errorf("poll limit %d is negative", cfg.PollLimit)
	}
	if cfg.PollLimit == 0 {
		cfg.PollLimit = defaultPollLimit
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if parts.Jobs == nil || parts.Queue == nil || parts.Objects == nil || parts.Tokens == nil ||
		parts.Groups == nil || parts.Access == nil || parts.Audit == nil || parts.Registry == nil {
		return nil, errors.New("the API lacks one of its parts")
	}
	limits, err := cfg.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(parts.Registry)
	if err != nil {
		return nil, err
	}
	s := &service{
		Parts: parts, base: base, baseText: strings.TrimSuffix(base.String(), "/"), dialect: cfg.Dialect,
		now: cfg.Now, log: cfg.Logger, pollLimit: cfg.PollLimit, limits: limits,
		needGroup: cfg.RequireGroupScope, metrics: metrics,
	}
	var tokenEndpoint string
	if cfg.SMART != nil {
		tokenEndpoint = cfg.SMART.TokenEndpoint
		s.smartDocument = newDocument("application/json", cfg.SMART)
	}
	s.capabilities = newDocument(fhirJSON, newCapabilities(s.baseText, tokenEndpoint, cfg.Now()))
	return s, nil
}

// CheckBase refuses base URLs that could not be the beginning of every emitted URL. New applies it; it is here for
// those who check a configuration without starting anything.
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

// plainPath refuses paths in which an encoded slash hides. Routes are matched on the decoded path, where such a slash
// would divide segments: Group/g1%2F$export names a group "g1/$export", and no export of g1.
func (s *service) plainPath(c *gin.Context) {
	if hidesSlash(c.Request.URL) {
		s.refuse(c, s.noRoute(c))
	}
}

func hidesSlash(u *url.URL) bool { return strings.Contains(strings.ToUpper(u.EscapedPath()), "%2F") }

// statusURL is the one URL of a job: status, cancel and, below it, its files.
func (s *service) statusURL(job export.JobID) string { return s.baseText + "/exports/" + string(job) }

func (s *service) fileURL(job export.JobID, name string) string {
	return s.statusURL(job) + "/files/" + url.PathEscape(name)
}

func (s *service) noRoute(*gin.Context) error {
	return refusal{status: http.StatusNotFound, code: "not-found", text: "There is nothing at this path."}
}

func (s *service) noMethod(c *gin.Context) error {
	// Gin lists the methods in the order in which they were registered.
	allowed := strings.Split(c.Writer.Header().Get("Allow"), ", ")
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	return refusal{
		status: http.StatusMethodNotAllowed, code: "not-supported",
		text:   "The method is not supported at this path. Supported: " + allow + ".",
		header: map[string]string{"Allow": allow},
	}
}
