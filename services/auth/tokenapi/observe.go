package tokenapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

type metrics struct{ tokens, refused *prometheus.CounterVec }

func newMetrics(registry *prometheus.Registry) metrics {
	auto := promauto.With(registry)
	return metrics{
		tokens: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_auth_tokens_total", Help: "Token requests by outcome: issued, or the error of the response.",
		}, []string{"outcome"}),
		refused: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_auth_refused_total", Help: "Failed authentications of clients by the violated rule.",
		}, []string{"rule"}),
	}
}

// record logs a request and counts it. The log line contains the hash of an authenticated client, as in the API's
// log, and the reason for a refusal.
func (s *Service) record(ctx context.Context, client string, refused *problem) {
	outcome, level := "issued", slog.LevelInfo
	attrs := []any{}
	if client != "" {
		attrs = append(attrs, "owner", export.Owner{Issuer: s.issuer, Subject: client}.Hash())
	}
	if refused != nil {
		outcome = refused.code
		if refused.status == http.StatusTooManyRequests {
			outcome = "limited"
		}
		if refused.status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		attrs = append(attrs, "reason", refused.text)
		if refused.rule != "" {
			attrs = append(attrs, "rule", string(refused.rule))
			s.metrics.refused.WithLabelValues(string(refused.rule)).Inc()
		}
		if refused.cause != nil {
			attrs = append(attrs, "err", refused.cause)
		}
	}
	s.metrics.tokens.WithLabelValues(outcome).Inc()
	s.cfg.Logger.Log(ctx, level, "token request", append(attrs, "outcome", outcome)...)
}

// audit records a token or a refusal. It names only authenticated clients, because other ids are unverified input.
func (s *Service) audit(r *http.Request, client, scope string, refused *problem) error {
	event := audit.Event{Action: audit.Token, Outcome: audit.Success, HTTPStatus: http.StatusOK, Target: scope}
	if client != "" {
		event.Agent = export.Owner{Issuer: s.issuer, Subject: client}
	}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		event.Address = from.Addr().Unmap()
	}
	if refused != nil {
		event.Outcome, event.HTTPStatus, event.Reason, event.Target = audit.Refused, refused.status, refused.text, ""
		if refused.rule != "" {
			event.Reason = fmt.Sprintf("%s (rule %s)", refused.text, refused.rule)
		}
		if refused.status >= http.StatusInternalServerError {
			event.Outcome = audit.Failed
		}
	}
	return s.deps.Audit.Record(event)
}

// contain turns a panic into a server error.
func (s *Service) contain(w http.ResponseWriter) {
	if cause := recover(); cause != nil {
		s.cfg.Logger.Error("panic in the token service", "err", fmt.Sprint(cause), "stack", string(debug.Stack()))
		s.metrics.tokens.WithLabelValues("server_error").Inc()
		broken(nil).write(w)
	}
}
