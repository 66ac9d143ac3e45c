package httpapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// parseStrict reads the query string of a strict kick-off of a group.
func parseStrict(query string) (parameters, error) {
	all, err := parseQuery(query)
	if err != nil {
		return parameters{}, err
	}
	return asking{level: export.GroupLevel}.validate(all)
}

func TestParseParameters(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		query string
		types []string // nil with a refusal
		want  string   // a part of the refusal's text; "" for none
		code  string   // of the refusal; "" is invalid
	}{
		{"none", "", nil, "", ""},
		{"one type", "_type=Patient", []string{"Patient"}, "", ""},
		{"K-14 lists and repeats", "_type=Patient,Observation&_type=Condition&_type=Patient",
			[]string{"Condition", "Observation", "Patient"}, "", ""},
		{"encoded comma", "_type=Patient%2CObservation", []string{"Observation", "Patient"}, "", ""},
		{"referenced beside others", "_type=Practitioner,Patient", []string{"Patient", "Practitioner"}, "", ""},
		{"P-16 unknown", "_type=Patient,Missing", nil, "Missing", ""},
		{"P-16 case", "_type=patient", nil, "patient", ""},
		{"not the form of a name", "_type=Patient/123", nil, "_type", ""},
		{"a blank before", "_type=Patient,%20Observation", []string{"Observation", "Patient"}, "", ""},
		{"a blank after", "_type=Patient+,Observation%09", []string{"Observation", "Patient"}, "", ""},
		{"a blank inside", "_type=Obser+vation", nil, "_type", ""},
		{"only a blank", "_type=Patient,+", nil, "empty name", ""},
		{"a comma at the end", "_type=Patient,", nil, "a comma too many", ""},
		{"a comma before", "_type=,Patient", nil, "empty name", ""},
		{"P-17 only referenced", "_type=Practitioner,Organization", []string{"Organization", "Practitioner"}, "", ""},
		{"P-18 empty", "_type=", nil, "_type", ""},
		{"empty member", "_type=Patient,,Observation", nil, "_type", ""},
		{"empty repeat", "_type=Patient&_type=", nil, "_type", ""},
		{"never with a group", "_type=Patient,Group,AuditEvent", nil, "AuditEvent, Group", "not-supported"},
		{"P-01", "_outputFormat=application/fhir%2Bndjson", nil, "", ""},
		{"P-02", "_outputFormat=application/ndjson", nil, "", ""},
		{"P-03", "_outputFormat=ndjson", nil, "", ""},
		{"P-05 raw plus", "_outputFormat=application/fhir+ndjson", nil, "", ""},
		{"the same twice", "_outputFormat=application/fhir+ndjson&_outputFormat=application/fhir%2Bndjson", nil, "", ""},
		{"K-19 twice and different", "_outputFormat=ndjson&_outputFormat=application/ndjson", nil, "_outputFormat", ""},
		{"P-06 xml", "_outputFormat=application/xml", nil, "_outputFormat", "not-supported"},
		{"P-06 empty", "_outputFormat=", nil, "_outputFormat", "not-supported"},
		{"tolerated", "_format=json&_pretty=true", nil, "", ""},
		{"P-07", "_since=2020-01-01T00:00:00Z", nil, "", ""},
		{"P-08 twice", "_since=2020-01-01T00:00:00Z&_since=2020-01-01T00:00:00Z", nil, "", ""},
		{"K-19 since", "_since=2020-01-01T00:00:00Z&_since=2021-01-01T00:00:00Z", nil, "_since", ""},
		{"P-36", "_until=2020-01-01T00:00:00Z", nil, "", ""},
		{"P-36 before since", "_until=2020-01-01T00:00:00Z&_since=2020-01-01T00:00:00.001Z", nil, "_until", ""},
		{"P-36 equal", "_until=2020-01-01T01:00:00%2B01:00&_since=2020-01-01T00:00:00Z", nil, "", ""},
		{"P-19", "_elements=id,Patient.name", nil, "", ""},
		{"P-20 nested", "_elements=Patient.name.given", nil, "_elements", ""},
		{"too many elements", "_elements=" + strings.Repeat("id,", maxElements) + "id", nil, "_elements", "too-costly"},
		{"P-31", "_typeFilter=Patient%3Factive%3Dtrue", nil, "", ""},
		{"P-33 no search parameter", "_typeFilter=Patient%3F_sort%3Dbirthdate", nil, "_sort", ""},
		{"P-34 unknown", "_typeFilter=Patient%3Fstatus%3Dactive", nil, "Patient: status", ""},
		{"no query", "_typeFilter=", nil, "_typeFilter", ""},
		{"too many filters", "_typeFilter=Patient%3Factive%3Dtrue" + strings.Repeat(",Patient%3Factive%3Dtrue", maxFilters), nil, "_typeFilter", "too-costly"},
		{"long filter", "_typeFilter=Patient%3Fname%3D" + strings.Repeat("x", maxFilterText), nil, "_typeFilter", "too-costly"},
		{"patient", "patient=Patient/123", nil, "patient", "not-supported"},
		{"P-26", "includeAssociatedData=LatestProvenanceResources", nil, "", ""},
		{"P-29", "includeAssociatedData=_custom", nil, "includeAssociatedData", "not-supported"},
		{"P-29 empty", "includeAssociatedData=LatestProvenanceResources,", nil, "includeAssociatedData", "not-supported"},
		{"P-37", "organizeOutputBy=Patient", nil, "", ""},
		{"P-38", "organizeOutputBy=Group", nil, "organizeOutputBy", "not-supported"},
		{"P-38 case", "organizeOutputBy=patient", nil, "organizeOutputBy", "not-supported"},
		{"K-19 organize", "organizeOutputBy=Patient&organizeOutputBy=Group", nil, "organizeOutputBy", ""},
		{"P-37 with P-26", "organizeOutputBy=Patient&includeAssociatedData=LatestProvenanceResources", nil, "includeAssociatedData", "not-supported"},
		{"P-39", "allowPartialManifests=true", nil, "", ""},
		{"P-39 no boolean", "allowPartialManifests=yes", nil, "allowPartialManifests", ""},
		{"K-19 partial", "allowPartialManifests=true&allowPartialManifests=false", nil, "allowPartialManifests", ""},
		{"K-18 unknown", "_foo=1", nil, "_foo", ""},
		{"unknown without a value", "foo", nil, "foo", ""},
		{"broken escape", "_type=%zz", nil, "percent-encoding", ""},
		{"semicolon", "_type=Patient;x=1", nil, "';'", ""},
		{"not ASCII", "_type=P\xc3\xa4tient", nil, "percent-encoded", ""},
		{"too many", strings.Repeat("_type=Patient&", maxParameters) + "_type=Patient", nil, "more than 100", "too-costly"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStrict(test.query)
			if test.want == "" {
				if err != nil || !slices.Equal(got.types, test.types) {
					t.Fatalf("%q, %v, want %q", got.types, err, test.types)
				}
				return
			}
			var r refusal
			if !errors.As(err, &r) || r.status != http.StatusBadRequest || !strings.Contains(r.text, test.want) ||
				r.code != cmp.Or(test.code, "invalid") {
				t.Fatalf("%v of code %s, want a 400 that says %q", err, r.code, test.want)
			}
		})
	}
}

// P-08, P-09: an instant has date, time and zone, and its "+" may have become a blank.
func TestParseInstant(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2024-01-01T00:00:00Z": "2024-01-01T00:00:00Z", "2024-01-01T00:00:00.123Z": "2024-01-01T00:00:00.123Z",
		"2024-01-01T00:00:00-05:00": "2024-01-01T05:00:00Z", "2024-01-01T00:00:00+05:30": "2023-12-31T18:30:00Z",
		"2024-01-01T00:00:00 05:30": "2023-12-31T18:30:00Z", "2024-02-29T23:59:59.999999999+14:00": "2024-02-29T09:59:59.999999999Z",
		"1000-01-01T00:00:00Z": "1000-01-01T00:00:00Z", "9999-12-31T23:59:59Z": "9999-12-31T23:59:59Z",
	} {
		if at, ok := parseInstant(text); !ok || at.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %t", text, at, ok)
		}
	}
	for _, text := range []string{
		"", "yesterday", "2020", "2020-01", "2020-01-01", "2020-01-01T00:00", "2020-01-01T00:00Z", "2020-01-01T00:00:00",
		"0000-60-01T30:70:80+05:00", "2023-02-29T00:00:00Z", "2020-13-01T00:00:00Z", "2020-01-01T24:00:00Z", "2020-01-01T00:60:00Z",
		"2020-01-01T00:00:00z", "2020-01-01t00:00:00Z", "2020-01-01 00:00:00Z", "2020-01-01T00:00:00,5Z", "2020-01-01T00:00:00.Z",
		"2020-01-01T00:00:00+0500", "2020-01-01T00:00:00+05", "2020-01-01T00:00:00+15:00", "2020-01-01T00:00:00 +05:00",
		"0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00", "2020-1-1T0:0:0Z", " 00:00",
		"gt2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z\n",
	} {
		if at, ok := parseInstant(text); ok {
			t.Errorf("%q is read as %v", text, at)
		}
	}
}

// A misplaced value may be a token or a patient id, so it is not repeated.
func TestParseParametersRepeatsNoValues(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-8f14e45fceea167a5a36dedd4bea2543-s3cr3t"
	for _, query := range []string{
		"_type=" + secret, secret, secret + "=1", "patient=" + secret, "_outputFormat=" + secret, "x=" + secret,
		"_since=" + secret, "_until=" + secret, "includeAssociatedData=" + secret, "organizeOutputBy=" + secret,
		"allowPartialManifests=" + secret,
		"_type=%zz" + secret,
	} {
		_, err := parseStrict(query)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q gets the refusal %v", query, err)
		}
	}
}

func FuzzParseParameters(f *testing.F) {
	for _, seed := range []string{
		"", "_type=Patient,Observation&_type=Condition", "_outputFormat=ndjson", "_type=", "%", "a&b&c", "_type=%00",
		"_type=Patient;x=1", "_type=Patient%2CObservation", "%5ftype=Patient", "_type=Group", "_type=Organization",
		"_type=Patient&_type=", "_type=patient", "patient=Patient/1", "_Type=Patient", "_type[]=Patient", "_type=Patient%20",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, err := parseStrict(query)
		var r refusal
		if err != nil && !errors.As(err, &r) {
			t.Fatalf("%q: %v is no refusal", query, err)
		}
		if err != nil {
			if r.status != http.StatusBadRequest || got.types != nil {
				t.Errorf("%q: %d, %q", query, r.status, got.types)
			}
			return
		}
		// Compare with url.ParseQuery: the accepted types are exactly those in the query.
		read, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("%q is accepted: %v", query, err)
		}
		var want []string
		if read.Has("_type") {
			for name := range strings.SplitSeq(strings.Join(read["_type"], ","), ",") {
				want = append(want, strings.TrimSpace(name))
			}
			slices.Sort(want)
			want = slices.Compact(want)
		}
		if !slices.Equal(got.types, want) {
			t.Errorf("%q: %q, want %q", query, got.types, want)
		}
		for _, typ := range got.types {
			if !fhir.IsExportable(typ) {
				t.Errorf("%q: %s is never exported", query, typ)
			}
		}
	})
}

// FuzzParseBody: a body is refused with a 4xx that repeats nothing of it but names in a safe form, or its parameters are those of a
// second reader of the same JSON.
func FuzzParseBody(f *testing.F) {
	for _, seed := range []string{
		"", "null", "[]", `{"resourceType":"Parameters"}`, `{"resourceType":"Parameters","parameter":[]}`,
		`{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"},{"name":"_type","valueCode":"Condition"}]}`,
		`{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/1"}}]}`,
		`{"resourceType":"Parameters","parameter":[{"name":"x","part":[{"name":"y"}]}]}`,
		`{"resourceType":"Parameters","resourceType":"Patient"}`, `{"resourceType":"Parameters","parameter":[{"name":"_type","name":"x"}]}`,
		`{"resourceType":"Parameters","parameter":[{"name":"allowPartialManifests","valueBoolean":true}]}`,
		`{"resourceType":"Parameters","parameter":[{"name":"includeAssociatedData","valueCoding":{"code":"x"}}]}`,
		"\xef\xbb\xbf" + `{"resourceType":"Parameters"}`, `{"resourceType":"Parameters"}{}`, `{"resourceType":"Param\u0065ters"}`,
		`{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"\ud800"}]}`, `{"a":` + strings.Repeat("[", 100) + `}`,
	} {
		f.Add(seed)
	}
	header := http.Header{"Content-Type": {fhirJSON}}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseBody(header, strings.NewReader(text))
		if err != nil {
			var r refusal
			if !errors.As(err, &r) || r.status < 400 || r.status > 499 || got != nil {
				t.Fatalf("%q: %v, %v", text, got, err)
			}
			return
		}
		var resource struct {
			ResourceType string
			Parameter    []map[string]any
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(text, "\xef\xbb\xbf")), &resource); err != nil || resource.ResourceType != "Parameters" {
			t.Fatalf("%q is accepted: %v", text, err)
		}
		want := map[string][]string{}
		for _, entry := range resource.Parameter {
			name, _ := entry["name"].(string)
			value := ""
			for _, member := range bodyValues[name] {
				switch read := entry[member].(type) {
				case string:
					value = read
				case bool:
					value = strconv.FormatBool(read)
				case map[string]any:
					value, _ = read[map[bool]string{true: "code", false: "reference"}[member == "valueCoding"]].(string)
				}
			}
			want[name] = append(want[name], value)
		}
		if len(got) != len(want) {
			t.Errorf("%q: %+v, want %q", text, got, want)
		}
		for _, one := range got {
			if !slices.Equal(one.values, want[one.name]) || !one.inBody {
				t.Errorf("%q: %+v, want %q", text, one, want[one.name])
			}
		}
	})
}
