package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Code systems; those of FHIR in version 4.0.1.
const (
	dicom             = "http://dicom.nema.org/resources/ontology/DCM"
	restEvents        = "http://terminology.hl7.org/CodeSystem/audit-event-type"
	restInteractions  = "http://hl7.org/fhir/restful-interaction"
	entityTypes       = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
	entityRoles       = "http://terminology.hl7.org/CodeSystem/object-role"
	sourceTypes       = "http://terminology.hl7.org/CodeSystem/security-source-type"
	sluiceActions     = "urn:sluice:audit:action"
	sluiceAgents      = "urn:sluice:audit:agent"
	jobs              = "urn:sluice:job"
	networkIP         = "2" // of http://hl7.org/fhir/network-type
	instantForm       = "2006-01-02T15:04:05.000Z"
	resourceLineBegin = `{"resourceType":"AuditEvent",`
)

// kind is the FHIR representation of an Action.
type kind struct {
	action  string // one of C R U D E
	typ     coding
	subtype []coding // in addition to the action itself
	own     bool     // without an agent, done by the process
}

var (
	rest        = coding{restEvents, "rest", "RESTful Operation"}
	operation   = []coding{{restInteractions, "operation", "operation"}}
	application = coding{dicom, "110100", "Application Activity"}
)

var kinds = map[Action]kind{
	KickOff: {action: "C", typ: rest, subtype: operation},
	Status:  {action: "R", typ: rest, subtype: operation},
	File:    {action: "R", typ: rest, subtype: operation},
	Cancel:  {action: "D", typ: rest, subtype: operation},
	Denied:  {action: "E", typ: rest, subtype: operation},
	Expire:  {action: "D", typ: application, own: true},
	Purge:   {action: "D", typ: application, own: true},
	Token:   {action: "E", typ: coding{dicom, "110114", "User Authentication"}},
	Admin:   {action: "U", typ: application, own: true},
	Start:   {action: "E", typ: application, subtype: []coding{{dicom, "110120", "Application Start"}}, own: true},
	Stop:    {action: "E", typ: application, subtype: []coding{{dicom, "110121", "Application Stop"}}, own: true},
	Repair:  {action: "E", typ: application, own: true},
}

// outcomes are codes of http://hl7.org/fhir/audit-event-outcome.
var outcomes = map[Outcome]string{Success: "0", Refused: "4", Failed: "8"}

// resource is the part of an R4 AuditEvent (http://hl7.org/fhir/R4/auditevent.html) that the log uses. seal appends the chain
// extension.
type resource struct {
	ResourceType string   `json:"resourceType"`
	Type         coding   `json:"type"`
	Subtype      []coding `json:"subtype"`
	Action       string   `json:"action"`
	Recorded     string   `json:"recorded"`
	Outcome      string   `json:"outcome"`
	OutcomeDesc  string   `json:"outcomeDesc,omitempty"`
	Agent        []agent  `json:"agent"`
	Source       source   `json:"source"`
	Entity       []entity `json:"entity,omitempty"`
}

type coding struct {
	System  string `json:"system"`
	Code    string `json:"code"`
	Display string `json:"display,omitempty"`
}

type concept struct {
	Coding []coding `json:"coding"`
	Text   string   `json:"text,omitempty"`
}

type reference struct {
	Identifier *identifier `json:"identifier,omitempty"`
	Display    string      `json:"display,omitempty"`
}

type identifier struct {
	System string `json:"system,omitempty"`
	Value  string `json:"value"`
}

type agent struct {
	Type      *concept   `json:"type,omitempty"`
	Who       *reference `json:"who,omitempty"`
	Requestor bool       `json:"requestor"`
	Network   *network   `json:"network,omitempty"`
}

type network struct {
	Address string `json:"address"`
	Type    string `json:"type"`
}

type source struct {
	Site     string    `json:"site,omitempty"`
	Observer reference `json:"observer"`
	Type     []coding  `json:"type"`
}

type entity struct {
	What   *reference `json:"what,omitempty"`
	Type   coding     `json:"type"`
	Role   *coding    `json:"role,omitempty"`
	Name   string     `json:"name,omitempty"`
	Detail []detail   `json:"detail,omitempty"`
}

type detail struct {
	Type  string `json:"type"`
	Value string `json:"valueString"`
}

// encode returns the event as one JSON object without a line break.
func (l *Log) encode(e Event, now time.Time) ([]byte, error) {
	k := kinds[e.Action]
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(resource{
		ResourceType: "AuditEvent",
		Type:         k.typ,
		Subtype:      append([]coding{{System: sluiceActions, Code: string(e.Action)}}, k.subtype...),
		Action:       k.action,
		Recorded:     now.UTC().Format(instantForm),
		Outcome:      outcomes[e.Outcome],
		OutcomeDesc:  e.Reason,
		Agent:        []agent{l.agent(e, k)},
		Source: source{
			Site: l.site, Observer: reference{Display: l.process},
			Type: []coding{{sourceTypes, "4", "Application Server"}},
		},
		Entity: entities(e),
	})
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return bytes.TrimRight(text.Bytes(), "\n"), nil
}

func (l *Log) agent(e Event, k kind) agent {
	a := agent{Requestor: true}
	switch {
	case e.Agent.Subject != "":
		a.Who = &reference{Identifier: &identifier{System: e.Agent.Issuer, Value: e.Agent.Subject}}
	case k.own:
		a.Type = &concept{Coding: []coding{{dicom, "110150", "Application"}}}
		a.Who = &reference{Display: l.process}
	default:
		a.Type = &concept{Coding: []coding{{System: sluiceAgents, Code: "unauthenticated"}}, Text: "unauthenticated client"}
	}
	if e.Address.IsValid() {
		a.Network = &network{Address: e.Address.Unmap().String(), Type: networkIP}
	}
	return a
}

func entities(e Event) (list []entity) {
	thing := coding{entityTypes, "2", "System Object"}
	details := details(e)
	if e.Job != "" {
		list = append(list, entity{
			What: &reference{Identifier: &identifier{System: jobs, Value: string(e.Job)}}, Type: thing,
			Role: &coding{entityRoles, "20", "Job"}, Detail: details,
		})
		details = nil
	}
	if e.Target != "" || len(details) > 0 {
		list = append(list, entity{Type: thing, Name: e.Target, Detail: details})
	}
	return list
}

func details(e Event) (list []detail) {
	add := func(name, value string, present bool) {
		if present {
			list = append(list, detail{name, value})
		}
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	add("types", strings.Join(e.Types, ","), len(e.Types) > 0)
	add("file", e.File, e.File != "")
	add("range-start", number(e.Range.Start), e.Range.Length > 0)
	add("range-length", number(e.Range.Length), e.Range.Length > 0)
	add("bytes", number(e.Bytes), e.Bytes > 0)
	add("status", strconv.Itoa(e.HTTPStatus), e.HTTPStatus != 0)
	add("request", e.RequestID, e.RequestID != "")
	return list
}
