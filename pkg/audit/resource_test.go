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

// r4 holds the elements of AuditEvent as R4 (4.0.1) defines them, http://hl7.org/fhir/R4/auditevent-definitions.html,
// with their cardinality, and the codes of those with a required binding. Elements that the log never has are left
// out, so that one which turns up is noticed.
var r4 = map[string]struct {
	least, most int
	form        string // of a value; "" for what has children
}{
	"resourceType":                     {1, 1, `AuditEvent`},
	"type":                             {1, 1, ""},
	"type.system":                      {1, 1, `https?://\S+`},
	"type.code":                        {1, 1, `\S+`},
	"type.display":                     {0, 1, `\S.*`},
	"subtype":                          {0, 9, ""},
	"subtype.system":                   {1, 1, `(https?://|urn:)\S+`},
	"subtype.code":                     {1, 1, `\S+`},
	"subtype.display":                  {0, 1, `\S.*`},
	"action":                           {0, 1, `[CRUDE]`},
	"recorded":                         {1, 1, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`},
	"outcome":                          {0, 1, `0|4|8|12`},
	"outcomeDesc":                      {0, 1, `\S.*`},
	"agent":                            {1, 9, ""},
	"agent.type":                       {0, 1, ""},
	"agent.type.coding":                {0, 9, ""},
	"agent.type.coding.system":         {1, 1, `(https?://|urn:)\S+`},
	"agent.type.coding.code":           {1, 1, `\S+`},
	"agent.type.coding.display":        {0, 1, `\S.*`},
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
	"source.type.system":               {1, 1, `http://\S+`},
	"source.type.code":                 {1, 1, `\S+`},
	"source.type.display":              {0, 1, `\S.*`},
	"entity":                           {0, 9, ""},
	"entity.what":                      {0, 1, ""},
	"entity.what.identifier":           {0, 1, ""},
	"entity.what.identifier.system":    {0, 1, `urn:sluice:job`},
	"entity.what.identifier.value":     {0, 1, `[a-z2-7]{26}`},
	"entity.type":                      {0, 1, ""},
	"entity.type.system":               {1, 1, `http://\S+`},
	"entity.type.code":                 {1, 1, `\S+`},
	"entity.type.display":              {0, 1, `\S.*`},
	"entity.role":                      {0, 1, ""},
	"entity.role.system":               {1, 1, `http://\S+`},
	"entity.role.code":                 {1, 1, `\S+`},
	"entity.role.display":              {0, 1, `\S.*`},
	"entity.name":                      {0, 1, `\S.*`}, // sev-1: never beside a query, of which there is none
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

// departures compares one element with its definition, and what it holds with theirs, and says where they differ.
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
	proven(t, path)
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

// The comparison itself must notice what is wrong.
func TestDeparturesAreNoticed(t *testing.T) {
	good := `{"resourceType":"AuditEvent","type":{"system":"http://a","code":"rest"},"recorded":"2026-03-01T12:00:00.000Z",` +
		`"agent":[{"requestor":true}],"source":{"observer":{"display":"api"}}}`
	for _, tc := range [][2]string{
		{good, good}, {`,"recorded":"2026-03-01T12:00:00.000Z"`, ``}, {`2026-03-01T12`, `12`}, {`"requestor":true`, ``},
		{`[{"requestor":true}]`, `[]`}, {`"observer":{"display":"api"}`, `"site":"x"`}, {`"display":"api"`, ``},
		{`"agent"`, `"action":"X","agent"`}, {`"agent"`, `"patient":"X","agent"`}, {`"agent"`, `"outcome":"1","agent"`},
		{`{"system":"http://a","code":"rest"}`, `[{"system":"http://a","code":"rest"}]`},
	} {
		var value any
		if err := json.Unmarshal([]byte(strings.Replace(good, tc[0], tc[1], 1)), &value); err != nil {
			t.Fatal(err)
		}
		if found := departures("", value); (len(found) > 0) != (tc[0] != tc[1]) {
			t.Errorf("%s in place of %s: noticed %q", tc[1], tc[0], found)
		}
	}
}
