package httpapi

import (
	"errors"
	"net/http"
	"net/netip"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Nothing is done or disclosed that is not on record: each event is recorded before the step that it tells of, and when
// it cannot be recorded the step is not taken and the answer is 503. What then fails after all is recorded as failed, by
// the refusal that the client gets.

// recordEvent records what the caller is about to do or to get. The event's agent, address and request are filled in.
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

// succeeded is the event of an answer with the status.
func succeeded(action audit.Action, job export.JobID, status int) audit.Event {
	return audit.Event{Action: action, Outcome: audit.Success, Job: job, HTTPStatus: status}
}

// recordRefusal records that the caller does not get what it asked for. Requests that lead nowhere and what everybody may
// read are no events.
func (s *service) recordRefusal(c *gin.Context, r refusal) error {
	action, audited := s.actionOf(c)
	if !audited {
		return nil
	}
	event := audit.Event{
		Action: action, Outcome: audit.Refused, Job: export.JobID(c.GetString(jobIDKey)), HTTPStatus: r.status, Reason: r.text,
	}
	if r.status >= http.StatusInternalServerError || r.status == statusClientGone {
		event.Outcome = audit.Failed
	}
	return s.recordEvent(c, event)
}

// actionOf returns what a request asks for by its route. What comes from nobody who is known is denied, whatever it is.
func (s *service) actionOf(c *gin.Context) (action audit.Action, audited bool) {
	switch c.FullPath() {
	case joinPath(s.base.Path, kickoffRoute):
		action = audit.KickOff
	case joinPath(s.base.Path, fileRoute):
		action = audit.File
	case joinPath(s.base.Path, statusRoute):
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

// recordCut records how much of a file went out when its transfer broke off.
func (s *service) recordCut(c *gin.Context, event audit.Event, sent int64, cause error) error {
	event.Outcome, event.Bytes, event.Reason = audit.Failed, sent, "the transfer broke off"
	return errors.Join(cause, s.recordEvent(c, event))
}
