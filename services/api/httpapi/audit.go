package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Each event is recorded before its step. If it cannot be recorded, the step is not taken and the response is 503. If the
// step then fails, the refusal is recorded as well.

// recordEvent records an event before it happens. It fills in the agent, the address and the request id.
func (s *service) recordEvent(c *gin.Context, event audit.Event) error {
	if principal, known := c.Get(principalKey); known {
		event.Agent = principal.(token.Principal).Owner //nolint:forcetypeassert // authenticate sets nothing else
	}
	if from, err := netip.ParseAddrPort(c.Request.RemoteAddr); err == nil {
		event.Address = from.Addr().Unmap()
	}
	event.RequestID = requestID(c)
	return s.Audit.Record(event)
}

// succeeded returns the event of a successful response with the status.
func succeeded(action audit.Action, job export.JobID, status int) audit.Event {
	return audit.Event{Action: action, Outcome: audit.Success, Job: job, HTTPStatus: status}
}

// recordRefusal records a refused request. Unknown paths and public documents are not recorded.
func (s *service) recordRefusal(c *gin.Context, r refusal) error {
	action, audited := s.actionOf(c)
	if !audited {
		return nil
	}
	event := audit.Event{
		Action: action, Outcome: audit.Refused, Job: export.JobID(c.GetString(jobIDKey)), HTTPStatus: r.status, Reason: r.text,
	}
	if rule := c.GetString(ruleKey); rule != "" {
		event.Reason = fmt.Sprintf("%s (rule %s)", c.GetString(reasonKey), rule)
	}
	if r.status >= http.StatusInternalServerError || r.status == statusClientGone {
		event.Outcome = audit.Failed
	}
	return s.recordEvent(c, event)
}

// actionOf returns the action of a request by its route; without an authenticated caller it is Denied.
func (s *service) actionOf(c *gin.Context) (action audit.Action, audited bool) {
	switch c.FullPath() {
	case s.template(systemRoute), s.template(patientRoute), s.template(kickoffRoute):
		action = audit.KickOff
	case s.template(groupRoute):
		action = audit.Read
	case s.template(groupsRoute):
		action = audit.Search
	case s.template(fileRoute), s.template(attachedRoute):
		action = audit.File
	case s.template(statusRoute):
		action = audit.Status
		if c.Request.Method == http.MethodDelete {
			action = audit.Cancel
		}
	default:
		return "", false
	}
	if _, known := c.Get(principalKey); !known {
		action = audit.Denied
	}
	return action, true
}

// recordCut records how many bytes of a file were sent before the transfer was interrupted.
func (s *service) recordCut(c *gin.Context, event audit.Event, sent int64, cause error) error {
	event.Outcome, event.Bytes, event.Reason = audit.Failed, sent, "the transfer broke off"
	return errors.Join(cause, s.recordEvent(c, event))
}
