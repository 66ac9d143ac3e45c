package audit

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

type element struct {
	least, most int
	form        string // of a value; "" for an element with children
}

// r4 holds the elements of AuditEvent as R4 (4.0.1) defines them, http://hl7.org/fhir/R4/auditevent-definitions.html,
// with their cardinality and the codes of required bindings. Elements that the log does not use are left out, so the test
// fails when one appears.
var r4 = map[string]element{
	"resourceType":                     {1, 1, `AuditEvent`},
	"type":                             {1, 1, ""},
	"subtype":                          {0, 9, ""},
	"action":                           {0, 1, `[CRUDE]`},
	"recorded":                         {1, 1, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`},
	"outcome":                          {0, 1, `0|4|8|12`},
	"outcomeDesc":                      {0, 1, `\S.*`},
	"agent":                            {1, 9, ""},
	"agent.type":                       {0, 1, ""},
	"agent.type.coding":                {0, 9, ""},
	"agent.type.text":                  {0, 1, `\S.*`},
	"agent.who":                        {0, 1, ""},
	"agent.who.identifier":             {0, 1, ""},
	"agent.who.identifier.system":      {0, 1, `\S+`},
	"agent.who.identifier.value":       {0, 1, `\S.*`},
	"agent.who.display":                {0, 1, `\S.*`},
	"agent.requestor":                  {1, 1, `true|false`},
	"agent.network":                    {0, 1, ""},
	"agent.network.address":            {0, 1, `\S+`},
	"agent.network.type":               {0, 1, `[1-5]`},
	"source":                           {1, 1, ""},
	"source.site":                      {0, 1, `\S.*`},
	"source.observer":                  {1, 1, ""},
	"source.observer.display":          {0, 1, `\S.*`},
	"source.type":                      {0, 9, ""},
	"entity":                           {0, 9, ""},
	"entity.what":                      {0, 1, ""},
	"entity.what.identifier":           {0, 1, ""},
	"entity.what.identifier.system":    {0, 1, `urn:sluice:job`},
	"entity.what.identifier.value":     {0, 1, `[a-z2-7]{26}`},
	"entity.type":                      {0, 1, ""},
	"entity.role":                      {0, 1, ""},
	"entity.name":                      {0, 1, `\S.*`}, // sev-1: never together with query
	"entity.detail":                    {0, 9, ""},
	"entity.detail.type":               {1, 1, `[a-z-]+`},
	"entity.detail.valueString":        {1, 1, `\S.*`},
	"extension":                        {0, 9, ""},
	"extension.url":                    {1, 1, `urn:sluice:audit:chain`},
	"extension.extension":              {0, 9, ""},
	"extension.extension.url":          {1, 1, `chain|sequence|previous|method|hash`},
	"extension.extension.valueString":  {0, 1, `[0-9a-f]+`},
	"extension.extension.valueCode":    {0, 1, `(hmac-)?sha256`},
	"extension.extension.valueDecimal": {0, 1, `\d+`},
}

func init() {
	for _, path := range []string{"type", "subtype", "agent.type.coding", "source.type", "entity.type", "entity.role"} {
		r4[path+".system"] = element{1, 1, `(https?://|urn:)\S+`}
		r4[path+".code"] = element{1, 1, `\S+`}
		r4[path+".display"] = element{0, 1, `\S.*`}
	}
}

// departures compares an element and its children with their definitions and returns the differences.
func departures(path string, value any) (found []string) {
	differs := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	object, isObject := value.(map[string]any)
	defined := r4[path]
	switch {
	case path != "" && isObject != (defined.form == ""):
		differs("%s is %v", path, value)
		return found
	case !isObject:
		if text := fmt.Sprint(value); !regexp.MustCompile(`^(` + defined.form + `)$`).MatchString(text) {
			differs("%s is %q, want %s", path, text, defined.form)
		}
		return found
	case len(object) == 0:
		differs("%q has neither a value nor children (ele-1)", path)
	}
	prefix := path
	if path != "" {
		prefix += "."
	}
	for name, child := range object {
		below := prefix + name
		definition, known := r4[below]
		list, isList := child.([]any)
		switch {
		case !known:
			differs("R4 has no element %s, or it should be in the table", below)
		case isList != (definition.most > 1):
			differs("%s is a list: %v", below, isList)
		case isList && (len(list) == 0 || len(list) > definition.most):
			differs("%s is there %d times", below, len(list))
		}
		if !isList {
			list = []any{child}
		}
		for _, one := range list {
			found = append(found, departures(below, one)...)
		}
	}
	for below, definition := range r4 {
		name, inside := strings.CutPrefix(below, prefix)
		if _, there := object[name]; inside && !strings.Contains(name, ".") && definition.least > 0 && !there {
			differs("%s is required and missing", below)
		}
	}
	return found
}

func TestLinesAreAuditEvents(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	for _, action := range slices.Sorted(maps.Keys(kinds)) {
		full := download()
		full.Action, full.Reason, full.Target, full.Types = action, "a reason", "diabetes-registry", []string{"Patient", "Condition"}
		mustRecord(t, l, full)
		for outcome := range outcomes {
			mustRecord(t, l, Event{Action: action, Outcome: outcome})
		}
		mustRecord(t, l, Event{Action: action, Outcome: Success, Target: "t"}, Event{Action: action, Outcome: Success, Job: someJob})
	}
	mustClose(t, l)
	verified(t, path)
	for i, line := range linesOf(content(t, path)) {
		var value any
		if err := json.Unmarshal(line, &value); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if found := departures("", value); len(found) > 0 {
			t.Fatalf("line %d: %q\n%s", i+1, found, line)
		}
	}
}

// The format of a line is a contract, because other versions continue and verify the files.
func TestLineFormat(t *testing.T) {
	const want = `{"resourceType":"AuditEvent",` +
		`"type":{"system":"http://terminology.hl7.org/CodeSystem/audit-event-type","code":"rest","display":"RESTful Operation"},` +
		`"subtype":[{"system":"urn:sluice:audit:action","code":"file"},` +
		`{"system":"http://hl7.org/fhir/restful-interaction","code":"operation","display":"operation"}],` +
		`"action":"R","recorded":"2026-03-01T12:00:00.007Z","outcome":"0",` +
		`"agent":[{"who":{"identifier":{"system":"https://login.example.org","value":"research-team"}},"requestor":true,` +
		`"network":{"address":"192.0.2.7","type":"2"}}],` +
		`"source":{"site":"host-1","observer":{"display":"api"},"type":[{"system":` +
		`"http://terminology.hl7.org/CodeSystem/security-source-type","code":"4","display":"Application Server"}]},` +
		`"entity":[{"what":{"identifier":{"system":"urn:sluice:job","value":"aaaaaaaaaaaaaaaaaaaaaaaaaa"}},` +
		`"type":{"system":"http://terminology.hl7.org/CodeSystem/audit-entity-type","code":"2","display":"System Object"},` +
		`"role":{"system":"http://terminology.hl7.org/CodeSystem/object-role","code":"20","display":"Job"},` +
		`"detail":[{"type":"file","valueString":"Patient.e1.1.0.ndjson"},{"type":"range-start","valueString":"100"},` +
		`{"type":"range-length","valueString":"50"},{"type":"bytes","valueString":"50"},` +
		`{"type":"status","valueString":"206"},{"type":"request","valueString":"R1"}]}],` +
		`"extension":[{"url":"urn:sluice:audit:chain","extension":[` +
		`{"url":"chain","valueString":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"},{"url":"sequence","valueDecimal":0},` +
		`{"url":"previous","valueString":"0000000000000000000000000000000000000000000000000000000000000000"},` +
		`{"url":"method","valueCode":"hmac-sha256"},` +
		`{"url":"hash","valueString":"cf8f8a45855be176ec7085fa2e78b974cc7d1123ad1534cfd665e498fc7c42b4"}]}]}` + "\n"
	key := []byte(strings.Repeat("k", KeyBytes))
	l := &Log{process: "api", site: "host-1", hasher: newHasher(key)}
	text, err := l.encode(download(), noon())
	must(t, err)
	line, _ := l.hasher.seal(text, position{chain: strings.Repeat("0f", 16), previous: noHash})
	if string(line) != want {
		t.Errorf("the line is\n%swant\n%s", line, want)
	}
	if report := judge(t, Proof{Key: key}, []byte(want)); report.Problem != nil {
		t.Error(report.Problem)
	}
}
