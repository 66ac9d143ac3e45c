// Package directorytest is the suite that every implementation of directory.Groups and directory.Access passes.
package directorytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Group is a group of the suite.
type Group struct {
	ID           string
	Inactive     bool // active is false
	Definitional bool // actual is false
	Members      []Member
	Body         string // other elements, as JSON; "" for none
}

// Member is a member of a Group.
type Member struct {
	Reference  string // Group.member.entity.reference
	Identifier string // Group.member.entity.identifier.value
	Inactive   bool
	Start, End string // of Group.member.period, FHIR dateTimes of any precision; "" for none
}

// NDJSON returns the groups as lines of Group resources. In every second line the members come first.
func NDJSON(t *testing.T, groups []Group) []string {
	t.Helper()
	type m = map[string]any
	var lines []string
	for n, group := range groups {
		list := []m{}
		for _, member := range group.Members {
			entity := m{"reference": member.Reference, "display": "…"}
			if member.Identifier != "" {
				entity["identifier"] = m{"system": "urn:oid:1.2.3", "value": member.Identifier}
			}
			if member.Reference == "" {
				delete(entity, "reference")
			}
			one := m{"entity": entity}
			if member.Inactive {
				one["inactive"] = true
			}
			period := m{}
			if member.Start != "" {
				period["start"] = member.Start
			}
			if member.End != "" {
				period["end"] = member.End
			}
			if len(period) > 0 {
				one["period"] = period
			}
			list = append(list, one)
		}
		members, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		head := fmt.Sprintf(`"id":%q,"active":%t,"actual":%t`, group.ID, !group.Inactive, !group.Definitional)
		body := `"characteristic":[{"member":[{"entity":{"reference":"Patient/not-a-member"}}]}],"extension":[{"url":"x"}]`
		if group.Body != "" {
			body += "," + group.Body
		}
		if len(list) > 0 || n%4 < 2 { // an absent and an empty list mean the same
			body += `,"member":` + string(members)
		}
		if n%2 == 1 {
			head, body = body, head
		}
		lines = append(lines, `{"resourceType":"Group",`+head+","+body+"}")
	}
	return lines
}

// Malformed has lines that are not a valid Group, by their defect. Text that an error must not quote contains 20391.
var Malformed = func() map[string]string {
	const good = `{"resourceType":"Group","id":"g2","active":true,"actual":true,` +
		`"member":[{"entity":{"reference":"Patient/p1"}}]}`
	member := func(m string) string {
		return `{"resourceType":"Group","id":"g2","member":[{"entity":{"reference":"Patient/20391"}},` + m + `]}`
	}
	return map[string]string{
		"no JSON":               `not JSON`,
		"half a resource":       good[:60],
		"half a member":         good[:len(good)-8],
		"an array":              `[` + good + `]`,
		"null":                  `null`,
		"two resources":         good + strings.Replace(good, "g2", "g3", 1),
		"something after it":    good + ` x`,
		"another type":          `{"resourceType":"Patient","id":"20391"}`,
		"type in lower case":    `{"resourceType":"group","id":"g2"}`,
		"no type":               `{"id":"g2"}`,
		"type a number":         `{"resourceType":1,"id":"g2"}`,
		"no id":                 `{"resourceType":"Group","member":[{"entity":{"reference":"Patient/20391"}}]}`,
		"id empty":              `{"resourceType":"Group","id":""}`,
		"id not FHIR":           `{"resourceType":"Group","id":"../20391"}`,
		"id too long":           `{"resourceType":"Group","id":"` + strings.Repeat("x", 65) + `"}`,
		"id a number":           `{"resourceType":"Group","id":20391}`,
		"id twice":              `{"resourceType":"Group","id":"g2","id":"g3"}`,
		"active twice":          `{"resourceType":"Group","id":"g2","active":false,"active":true}`,
		"member twice":          `{"resourceType":"Group","id":"g2","member":[{"entity":{"reference":"Patient/a"}}],"member":[]}`,
		"member twice, escaped": `{"resourceType":"Group","id":"g2","member":[],"m\u0065mber":[]}`,
		"active in capitals":    `{"resourceType":"Group","id":"g2","active":true,"Active":false}`,
		"member in capitals":    `{"resourceType":"Group","id":"g2","Member":[{"entity":{"reference":"Patient/a"}}]}`,
		"member with a NUL":     `{"resourceType":"Group","id":"g2","member\u0000":[{"entity":{"reference":"Patient/a"}}]}`,
		"version twice":         `{"resourceType":"Group","id":"g2","meta":{"versionId":"2","versionId":"1"}}`,
		"version in capitals":   `{"resourceType":"Group","id":"g2","meta":{"VersionId":"2"}}`,
		"entity twice":          member(`{"entity":{"reference":"Patient/a"},"entity":{"reference":"Patient/b"}}`),
		"entity in capitals":    member(`{"Entity":{"reference":"Patient/a"}}`),
		"reference twice":       member(`{"entity":{"reference":"Patient/a","ref\u0065rence":"Patient/b"}}`),
		"reference in capitals": member(`{"entity":{"Reference":"Patient/a"}}`),
		"reference with a NUL":  member(`{"entity":{"reference":"Patient/a","reference\u0000":"Patient/b"}}`),
		"inactive twice":        member(`{"entity":{"reference":"Patient/a"},"inactive":true,"inactive":false}`),
		"inactive in capitals":  member(`{"entity":{"reference":"Patient/a"},"Inactive":true}`),
		"period twice":          member(`{"entity":{"reference":"Patient/a"},"period":{"end":"2020"},"period":{}}`),
		"end twice":             member(`{"entity":{"reference":"Patient/a"},"period":{"end":"2020","end":"2030"}}`),
		"period beside Period":  member(`{"entity":{"reference":"Patient/a"},"period":{"end":"2020"},"Period":{"end":"2030"}}`),
		"Reference beside it":   member(`{"entity":{"reference":"Patient/a","Reference":"Patient/b"}}`),
		"inactive with a NUL":   member(`{"entity":{"reference":"Patient/a"},"inactive\u0000":true}`),
		"inactive, surrogate":   member(`{"entity":{"reference":"Patient/a"},"inactive\ud800":true}`),
		"active, surrogate":     `{"resourceType":"Group","id":"g2","active\udc00":false}`,
		"a long narrative":      `{"resourceType":"Group","text":{"div":"` + strings.Repeat("a", 2<<20) + `"},"id":"g2"}`,
		"a long key":            `{"resourceType":"Group","id":"g2","` + strings.Repeat("a", 2<<20) + `":1}`,
		"a long member":         member(`{"entity":{"reference":"Patient/a"},"id":"` + strings.Repeat("a", 2<<20) + `"}`),
		"end in capitals":       member(`{"entity":{"reference":"Patient/a"},"period":{"END":"2020"}}`),
		"active a string":       `{"resourceType":"Group","id":"g2","active":"false"}`,
		"active behind":         `{"resourceType":"Group","id":"g2","member":[{"entity":{"reference":"Patient/a"}}],"active":0}`,
		"actual null":           `{"resourceType":"Group","id":"g2","actual":null}`,
		"member an object":      `{"resourceType":"Group","id":"g2","member":{"entity":{"reference":"Patient/20391"}}}`,
		"member null":           `{"resourceType":"Group","id":"g2","member":null}`,
		"a member a string":     member(`"Patient/20391"`),
		"a reference a number":  member(`{"entity":{"reference":20391}}`),
		"inactive a string":     member(`{"entity":{"reference":"Patient/20391"},"inactive":"true"}`),
		"period a string":       member(`{"entity":{"reference":"Patient/20391"},"period":"2026"}`),
		"period no date":        member(`{"entity":{"reference":"Patient/20391"},"period":{"end":"yesterday"}}`),
		"period an odd date":    member(`{"entity":{"reference":"Patient/20391"},"period":{"end":"2026-02-30"}}`),
		"period an odd start":   member(`{"entity":{"reference":"Patient/20391"},"period":{"start":"2026-02-30"}}`),
		"period without zone":   member(`{"period":{"start":"2026-03-15T12:00:00"}}`),
		"period with half zone": member(`{"period":{"end":"2026-03-15T12:00:00-0500"}}`),
		"period without minute": member(`{"period":{"end":"2026-03-15T12Z"}}`),
		"period with a blank":   member(`{"period":{"end":"2026-03-15 12:00:00Z"}}`),
		"no patient's period":   member(`{"entity":{"reference":"Device/20391"},"period":{"start":"2026-02-30"}}`),
	}
}()

// Versions has lines of the group "g" and the only member of the newest version, "" if that one cannot be read.
var Versions = func() map[string]struct {
	Lines  []string
	Member string
} {
	line := func(number, lastUpdated, member string) string {
		return fmt.Sprintf(`{"resourceType":"Group","meta":{"versionId":%q,"lastUpdated":%q},"id":"g",`+
			`"member":[{"entity":{"reference":"Patient/%s"}}]}`, number, lastUpdated, member)
	}
	const early, late = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00.5+01:00"
	bad := func(line string) string { return strings.Replace(line, `"member":[`, `"member":[5,`, 1) }
	type versions = struct {
		Lines  []string
		Member string
	}
	both := func(a, b, member string) versions { return versions{[]string{a, b}, member} }
	return map[string]versions{
		"newest first":               both(line("", late, "new"), line("", early, "old"), "new"),
		"newest last":                both(line("", early, "old"), line("", late, "new"), "new"),
		"a tie":                      both(line("", late, "old"), line("", late, "new"), "new"),
		"no dates":                   both(line("", "", "old"), line("", "", "new"), "new"),
		"a date and no date":         both(line("", early, "new"), line("", "", "old"), "new"),
		"no date and a date":         both(line("", "", "old"), line("", early, "new"), "new"),
		"numbers":                    both(line("10", early, "new"), line("9", late, "old"), "new"),
		"a number and no number":     both(line("10", early, "old"), line("x", late, "new"), "new"),
		"no number, no dates":        both(line("", "", "old"), line("1", "", "new"), "new"),
		"equal numbers":              both(line("2", late, "new"), line("2", early, "old"), "new"),
		"equal":                      both(line("2", late, "old"), line("2", late, "new"), "new"),
		"one of three has no number": {[]string{line("3", early, "a"), line("2", late, "new"), line("", "", "c")}, "new"},
		"newest unreadable":          both(line("2", early, "old"), bad(line("3", early, "x")), ""),
		"oldest unreadable":          both(bad(line("2", early, "x")), line("3", early, "new"), "new"),
		"unreadable, later date":     both(bad(line("", late, "x")), line("", early, "old"), ""),
		"unreadable, no version":     both(bad(line("", "", "x")), line("7", late, "old"), ""),
	}
}()

// Recreated has lines of the group "g", among which are entries that delete it, and its members afterwards, or the error.
var Recreated = func() map[string]struct {
	Lines   []string
	Members []string
	Err     error
} {
	line := func(number, member string) string {
		return fmt.Sprintf(`{"resourceType":"Group","id":"g","meta":{"versionId":%q},`+
			`"member":[{"entity":{"reference":"Patient/%s"}}]}`, number, member)
	}
	const gone = `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Group/g"}}]}`
	bad := strings.Replace(line("1", "x"), `"member":[`, `"member":[5,`, 1)
	type recreated = struct {
		Lines   []string
		Members []string
		Err     error
	}
	after := func(members []string, err error, lines ...string) recreated { return recreated{lines, members, err} }
	old, first, isNew := line("5", "left"), line("1", "new"), []string{"new"}
	return map[string]recreated{
		"deleted":                   after(nil, directory.ErrNoGroup, old, gone),
		"with a lower number":       after(isNew, nil, old, gone, first),
		"without a number":          after([]string{"newer"}, nil, old, gone, line("2", "new"), line("", "newer")),
		"the one before had none":   after(isNew, nil, line("", "left"), gone, line("2", "new"), line("1", "old")),
		"deleted again":             after(nil, directory.ErrNoGroup, old, gone, line("1", "left"), gone),
		"created twice":             after(isNew, nil, old, gone, line("3", "left"), gone, first),
		"the next cannot be read":   after(nil, export.ErrUnavailable, old, gone, bad),
		"a later one can be read":   after(isNew, nil, old, gone, bad, line("2", "new")),
		"deleted before it existed": after(isNew, nil, gone, first),
	}
}()

// OpenGroups returns an implementation with the groups and the clock.
type OpenGroups func(t *testing.T, now func() time.Time, groups []Group) directory.Groups

// Groups tests the contract of directory.Groups.
func Groups(t *testing.T, open OpenGroups) {
	now := func() time.Time { return time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) }
	big := Group{ID: "big"}
	for n := range 5000 {
		big.Members = append(big.Members, Member{Reference: fmt.Sprintf("Patient/p%d", n)})
	}
	with := func(start, end string) Group {
		return Group{Members: []Member{{Reference: "Patient/p", Start: start, End: end}}}
	}
	held := []Group{
		{ID: "empty"},
		{ID: "one", Members: []Member{{Reference: "Patient/p1"}}},
		{ID: "ONE", Members: []Member{{Reference: "Patient/p2"}}},
		{ID: "on", Members: []Member{{Reference: "Patient/p3"}}},
		{ID: "inactive", Inactive: true, Members: []Member{{Reference: "Patient/p1"}}},
		{ID: "definitional", Definitional: true},
		{ID: "forms", Members: []Member{
			{Reference: "Patient/a"},
			{Reference: "Patient/b/_history/2"},
			{Reference: "/Patient/c"},
			{Reference: "Patient/D.4-x#name"},
			{Reference: "Patient/" + strings.Repeat("x", 64), Identifier: "beside the reference"},
		}},
		{ID: "no-patients", Members: []Member{
			{Identifier: "1"}, {Identifier: "2"}, {Identifier: "1"}, // each member counts
			{Identifier: "3", Inactive: true}, {Identifier: "4", End: "2026-03-14"}, {Identifier: "5", Start: "2026-03-16"},
			{Reference: "Practitioner/1"}, {Reference: "http://fhir.example/Device/1"}, {Reference: "Practitioner?identifier=x|1"},
			{Reference: "http://fhir.example/base/Patient/a"}, {Reference: "HTTPS://fhir.example/Patient/a/_history/1"},
			{Reference: "https://fhir.example/Group/one"}, {Reference: "http://fhir.example/Patient?identifier=x|1"},
			{Reference: "#p1"}, {}, {Reference: "Patient"}, {Reference: "Patient/"}, {Reference: "Patient/a/b"},
			{Reference: "patient/a"}, {Reference: "Patient?identifier=x|1"}, {Reference: "Patient/a_b"}, {Reference: "Patient/a b"},
			{Reference: "Patient/" + strings.Repeat("x", 65)}, {Reference: "a"}, {Reference: "//Patient/a"},
			{Reference: "Patient/*"}, {Reference: "Patient/%"}, {Reference: "urn:x:y"}, {Reference: "Group/a_b"},
		}},
		{ID: "nested", Members: []Member{
			{Reference: "Patient/p0"}, {Reference: "Group/one"}, {Reference: "Group/deep-1"}, {Reference: "Group/nested"},
			{Reference: "Group/inactive"}, {Reference: "/Group/definitional"}, {Reference: "Group/unknown/_history/1"},
			{Reference: "Group/unknown"}, {Reference: "Group/ONE", Inactive: true}, {Reference: "Group/on", End: "2025"},
		}},
		{ID: "deep-1", Members: []Member{{Reference: "Group/deep-2"}, {Reference: "Patient/d1"}, {Identifier: "1"}}},
		{ID: "deep-2", Members: []Member{{Reference: "Group/deep-3"}, {Reference: "Group/nested"}, {Reference: "Group/unknown"}}},
		{ID: "deep-3", Members: []Member{{Reference: "Patient/d3"}, {Reference: "Group/deep-1"}, {Reference: "#x"}}},
		{ID: "again", Members: []Member{{Reference: "Group/on", Inactive: true}, {Reference: "Group/on"}}},
		{ID: "of-inactive", Members: []Member{{Reference: "Group/inactive"}}},
		{ID: "left", Members: []Member{
			{Reference: "Patient/in"}, {Reference: "Patient/out", Inactive: true},
			{Reference: "Patient/over", End: "2026-03-14"}, {Reference: "Patient/to-come", Start: "2026-03-16"},
			{Reference: "Patient/again", Inactive: true}, {Reference: "Patient/again"},
		}},
		big,
	}
	periods := map[string]bool{ // start|end: whether it covers the present
		"|": true, "2026|": true, "2026-03|": true, "2026-03-15|": true, "2027|": false, "2026-04|": false,
		"2026-03-16|": false, "2026-03-15T12:00:00Z|": true, "2026-03-15T12:00:01Z|": false,
		"2026-03-15T14:00:00+02:00|": true, "2026-03-15T12:00:00+02:00|": true, "2026-03-15T12:00:00-02:00|": false,
		"|2026": true, "|2026-03": true, "|2026-03-15": true, "|2025": false, "|2026-02": false, "|2026-03-14": false,
		"|2026-03-15T12:00:00Z": true, "|2026-03-15T11:59:59Z": false, "|2026-03-15T12:00:00.000Z": true,
		"|2026-03-15T11:59:59.999Z": false, "|2026-03-15T12:00:00+02:00": false, "|2026-03-15T12:00:00-02:00": true,
		"2025|2027": true, "2026|2026": true, "2027|2025": false, "2027|2028": false, "2020|2025": false,
		"2024-02-29|2026-12-31": true,
		// Deviations that are accepted.
		"2026-03-15t12:00:00z|": true, "2026-03-15T12:00Z|": true, "2026-03-15T12:01Z|": false, "|2026-03-15T12:00Z": true,
		"|2026-03-15T11:59Z": false, "|2026-03-15t14:00+02:00": true, "|2026-03-15T12:00:01.0000000000Z": true,
	}
	numbered := slices.Sorted(func(yield func(string) bool) {
		for period := range periods {
			if !yield(period) {
				return
			}
		}
	})
	for n, period := range numbered {
		start, end, _ := strings.Cut(period, "|")
		group := with(start, end)
		group.ID = fmt.Sprintf("period-%d", n)
		held = append(held, group)
	}
	groups := open(t, now, held)
	asked := []string{"in", "p0", "p1", "p2", "p3", "p4999", "to-come"}

	for id, want := range map[string][]string{
		"one": {"p1"}, "ONE": {"p2"}, "on": {"p3"}, // ids are compared exactly
		"forms":       {"D.4-x", "a", "b", "c", strings.Repeat("x", 64)},
		"no-patients": nil,
		"nested":      {"d1", "d3", "p0", "p1"},
		"deep-3":      {"d1", "d3", "p0", "p1"},
		"again":       {"p3"},
		"of-inactive": nil,
		"left":        {"again", "in"},
		// pitfall 1: a group without members exists and is empty.
		"empty": nil,
	} {
		t.Run("members of "+id, func(t *testing.T) {
			exists(t, groups, id, nil)
			for range 2 { // repeatable
				if got := members(t, groups, id); !slices.Equal(got, want) {
					t.Errorf("members %q, want %q", got, want)
				}
			}
		})
	}
	for id, want := range map[string]map[export.Reason]int64{
		"forms": {}, "left": {},
		"no-patients": {export.MemberByIdentifier: 3, export.MemberType: 3, export.MemberForeign: 4, export.MemberUnresolved: 16},
		"nested":      {export.MemberByIdentifier: 1, export.MemberUnresolved: 1, export.MemberGroup: 3},
		"again":       {},
		"of-inactive": {export.MemberGroup: 1},
	} {
		t.Run("left out of "+id, func(t *testing.T) {
			list, err := groups.Members(t.Context(), id, func(string) error { return nil })
			must(t, err)
			got := map[export.Reason]int64{}
			for _, l := range list {
				got[l.Reason] = l.Count
			}
			if !maps.Equal(got, want) {
				t.Errorf("left out %v, want %v", got, want)
			}
		})
	}
	for id, want := range map[string][]string{
		"one": {"in", "p0", "p2", "p3", "p4999", "to-come"}, "empty": asked, "of-inactive": asked,
		"nested": {"in", "p2", "p3", "p4999", "to-come"}, "again": {"in", "p0", "p1", "p2", "p4999", "to-come"},
		"left": {"p0", "p1", "p2", "p3", "p4999", "to-come"}, "big": {"in", "to-come"},
	} {
		t.Run("unknown in "+id, func(t *testing.T) {
			unknown(t, groups, id, asked, want)
			unknown(t, groups, id, nil, nil)
		})
	}
	for n, period := range numbered {
		t.Run("period "+period, func(t *testing.T) {
			if got := members(t, groups, fmt.Sprintf("period-%d", n)); (len(got) == 1) != periods[period] {
				t.Errorf("members %q, want covered %v", got, periods[period])
			}
		})
	}
	for _, id := range []string{
		"inactive", "definitional", "unknown", "", " ", "on ", "onee", "o", "*", "%", "one%", "One", "o_e", ".", "..", "/",
		"../one", "one/", "Group/one", "one,empty", "one' OR '1'='1", "one\x00", "\xff", strings.Repeat("x", 100000),
	} {
		t.Run("no group "+id[:min(len(id), 20)], func(t *testing.T) {
			exists(t, groups, id, directory.ErrNoGroup)
			_, err := groups.Members(t.Context(), id, func(string) error {
				t.Error("got a member")
				return nil
			})
			if !errors.Is(err, directory.ErrNoGroup) {
				t.Errorf("got error %v, want ErrNoGroup", err)
			}
			if id == "" { // the patients of the server: Patients
				return
			}
			if ids, err := groups.Unknown(t.Context(), id, asked); !errors.Is(err, directory.ErrNoGroup) || ids != nil {
				t.Errorf("%d unknown patients, error %v, want ErrNoGroup", len(ids), err)
			}
		})
	}
	t.Run("every member", func(t *testing.T) {
		if got := members(t, groups, "big"); len(got) != len(big.Members) {
			t.Errorf("%d members, want %d", len(got), len(big.Members))
		}
	})
	t.Run("an error from yield ends the stream and is returned unchanged", func(t *testing.T) {
		enough, calls := errors.New("enough"), 0
		_, err := groups.Members(t.Context(), "big", func(string) error {
			calls++
			if calls == 3 {
				return enough
			}
			return nil
		})
		if err != enough || calls != 3 { //nolint:errorlint // unchanged
			t.Errorf("error %v after %d calls, want the same error after 3", err, calls)
		}
	})
	t.Run("a cancelled context ends the stream", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		_, err := groups.Members(ctx, "big", func(string) error {
			calls++
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) || calls >= len(big.Members) {
			t.Errorf("error %v after %d calls, want context.Canceled before the end", err, calls)
		}
		if err := groups.Exists(ctx, "one"); !errors.Is(err, context.Canceled) {
			t.Errorf("Exists after the end: %v, want context.Canceled", err)
		}
		for _, id := range []string{"one", ""} {
			if _, err := groups.Unknown(ctx, id, asked); !errors.Is(err, context.Canceled) {
				t.Errorf("Unknown of %q after the end: %v, want context.Canceled", id, err)
			}
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for n := range 8 {
			all.Go(func() {
				id, want := "big", len(big.Members)
				if n%2 == 0 {
					id, want = "one", 1
				}
				count := 0
				_, err := groups.Members(t.Context(), id, func(string) error {
					count++
					return nil
				})
				if err != nil || count != want {
					t.Errorf("%s: %d members, want %d, error %v", id, count, want, err)
				}
			})
		}
		all.Wait()
	})
}

// Joined tests Joined by periods, for members without another known time.
func Joined(t *testing.T, open OpenGroups) {
	now := func() time.Time { return time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) }
	groups := open(t, now, []Group{
		{ID: "root", Members: []Member{
			{Reference: "Patient/always"}, {Reference: "Patient/gone", End: "2026-03-14"},
			{Reference: "Patient/inactive", Inactive: true},
			{Reference: "Patient/early", Start: "2025"}, {Reference: "Patient/late", Start: "2026-03-10T08:00:00Z"},
			{Reference: "Patient/to-come", Start: "2026-03-16"},
			{Reference: "Patient/back", End: "2026-02-01"}, {Reference: "Patient/back", Start: "2026-03-01"},
			{Reference: "Patient/renewed", End: "2026-03-09"}, {Reference: "Patient/renewed", Start: "2026-03-01"},
			{Reference: "Group/late", Start: "2026-03-10T08:00:00Z"}, {Reference: "Group/always"},
			{Reference: "Group/past", End: "2026-03-01"},
		}},
		{ID: "late", Members: []Member{{Reference: "Patient/by-late"}, {Reference: "Patient/always"}, {Reference: "Group/deep"}}},
		{ID: "always", Members: []Member{
			{Reference: "Patient/by-always"}, {Reference: "Patient/late-there", Start: "2026-03-12"},
		}},
		{ID: "past", Members: []Member{{Reference: "Patient/by-past"}, {Reference: "Patient/by-late"}}},
		{ID: "deep", Members: []Member{{Reference: "Patient/by-deep"}, {Reference: "Group/root"}}},
		{ID: "inactive", Inactive: true, Members: []Member{{Reference: "Patient/x", Start: "2026-03-12"}}},
	})
	for since, want := range map[string][]string{
		"2020-01-01T00:00:00Z": {"by-deep", "early", "late", "late-there"},
		"2026-02-15T00:00:00Z": {"back", "by-deep", "late", "late-there"},
		"2026-03-05T00:00:00Z": {"by-deep", "by-late", "late", "late-there"},
		"2026-03-10T07:59:59Z": {"by-deep", "by-late", "late", "late-there"},
		"2026-03-10T08:00:00Z": {"late-there"},
		"2026-03-15T12:00:00Z": nil,
	} {
		at, err := time.Parse(time.RFC3339, since)
		must(t, err)
		if got := joined(t, groups, "root", at); !slices.Equal(got, want) {
			t.Errorf("since %s %q joined, want %q", since, got, want)
		}
	}
	for _, id := range []string{"inactive", "unknown", "", "a/b"} {
		if err := groups.Joined(t.Context(), id, now(), nil); !errors.Is(err, directory.ErrNoGroup) {
			t.Errorf("group %q: %v, want ErrNoGroup", id, err)
		}
	}
	enough, calls := errors.New("enough"), 0
	err := groups.Joined(t.Context(), "root", time.Unix(0, 0), func(string) error { calls++; return enough })
	if err != enough || calls != 1 { //nolint:errorlint // unchanged
		t.Errorf("error %v after %d calls, want the same error after 1", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := groups.Joined(ctx, "root", now(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v, want context.Canceled", err)
	}
}

// joined returns the ids, sorted, each once.
func joined(t *testing.T, groups directory.Groups, id string, since time.Time) []string {
	t.Helper()
	var ids []string
	must(t, groups.Joined(t.Context(), id, since, func(patientID string) error {
		ids = append(ids, patientID)
		return nil
	}))
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Patients tests Unknown with the group "". open returns an implementation beside a source with the Patients.
func Patients(t *testing.T, open func(t *testing.T, patients []string) directory.Groups) {
	groups := open(t, []string{"P1", "p1", "p2", "p20"})
	for _, test := range []struct{ asked, want []string }{
		{nil, nil}, {[]string{"p1"}, nil}, {[]string{"P1", "p1", "p2", "p20"}, nil}, {[]string{"p"}, []string{"p"}},
		{[]string{"P2", "p1", "p10", "p2", "p3"}, []string{"P2", "p10", "p3"}},
	} {
		unknown(t, groups, "", test.asked, test.want)
	}
}

func unknown(t *testing.T, groups directory.Groups, id string, asked, want []string) {
	t.Helper()
	if got, err := groups.Unknown(t.Context(), id, asked); err != nil || !slices.Equal(got, want) {
		t.Errorf("of %q in group %q, %q are unknown, error %v; want %q", asked, id, got, err, want)
	}
}

// Find tests Find of directory.Groups.
func Find(t *testing.T, open OpenGroups) {
	three, zero := int64(3), int64(0)
	groups := open(t, func() time.Time { return time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) }, []Group{
		{ID: "plain"},
		{ID: "B", Body: `"name":"Ärzte","quantity":3,"identifier":[{"use":"official","system":"urn:s","value":"1"},` +
			`{"value":"2"},{"system":"urn:t"},{},{"use":"old"}]`},
		{ID: "a", Body: `"quantity":0,"name":""`},
		{ID: "c", Body: `"name":7,"quantity":"3","identifier":{"value":"1"}`},
		{ID: "d", Body: `"name":"a\u0000b","quantity":-1,"identifier":[{"value":"\u0000","system":7},{"value":"v"}]`},
		{ID: "inactive", Inactive: true, Body: `"name":"Inactive"`},
		{ID: "definitional", Definitional: true},
		{ID: "last", Body: `"quantity":1.5`},
	})
	details := map[string]directory.Details{
		"B": {Name: "Ärzte", Quantity: &three, Identifiers: []directory.Identifier{
			{System: "urn:s", Value: "1"}, {Value: "2"}, {System: "urn:t"}}},
		"a": {Quantity: &zero},
		"d": {Identifiers: []directory.Identifier{{Value: "v"}}},
	}
	for name, test := range map[string]struct {
		ids   []string
		after string
		want  []string
	}{
		"all":      {nil, "", []string{"B", "a", "c", "d", "last", "plain"}},
		"after":    {nil, "c", []string{"d", "last", "plain"}},
		"between":  {nil, "b", []string{"c", "d", "last", "plain"}},
		"some":     {[]string{"plain", "inactive", "b", "none", "B", "plain"}, "", []string{"B", "plain"}},
		"one":      {[]string{"a"}, "", []string{"a"}},
		"one, yet": {[]string{"a"}, "a", nil},
		"none":     {[]string{}, "", nil},
		"the end":  {nil, "plain", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			must(t, groups.Find(t.Context(), test.ids, test.after, func(d directory.Details) error {
				got = append(got, d.ID)
				want := details[d.ID]
				want.ID = d.ID
				if !reflect.DeepEqual(d, want) {
					t.Errorf("got %+v, want %+v", d, want)
				}
				return nil
			}))
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	enough, calls := errors.New("enough"), 0
	err := groups.Find(t.Context(), nil, "", func(directory.Details) error { calls++; return enough })
	if err != enough || calls != 1 { //nolint:errorlint // unchanged
		t.Errorf("error %v after %d calls, want the same error after 1", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := groups.Find(ctx, nil, "", func(directory.Details) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v, want context.Canceled", err)
	}
}

func exists(t *testing.T, groups directory.Groups, id string, want error) {
	t.Helper()
	if err := groups.Exists(t.Context(), id); !errors.Is(err, want) {
		t.Errorf("Exists: %v, want %v", err, want)
	}
}

// members returns the members' ids, sorted, each once.
func members(t *testing.T, groups directory.Groups, id string) []string {
	t.Helper()
	var ids []string
	_, err := groups.Members(t.Context(), id, func(patientID string) error {
		ids = append(ids, patientID)
		return nil
	})
	if err != nil {
		t.Fatalf("Members: %v", err)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
