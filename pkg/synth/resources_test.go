package synth

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// resource is one parsed line.
type resource map[string]any

func (r resource) name() string { return fmt.Sprint(r["resourceType"], "/", r["id"]) }

// at follows a path of member names, through all elements of arrays.
func (r resource) at(path string) []any {
	found := []any{map[string]any(r)}
	for step := range strings.SplitSeq(path, ".") {
		var next []any
		for _, one := range found {
			object, ok := one.(map[string]any)
			if !ok {
				continue
			}
			switch value := object[step].(type) {
			case nil:
			case []any:
				next = append(next, value...)
			default:
				next = append(next, value)
			}
		}
		found = next
	}
	return found
}

func (r resource) text(path string) string {
	if found := r.at(path); len(found) > 0 {
		return fmt.Sprint(found[0])
	}
	return ""
}

// population is a parsed population: byName by "Type/id", and all in the order of the files.
type population struct {
	all    []resource
	byName map[string]resource
}

// parsed parses the types given, or all of them.
func parsed(t *testing.T, dir string, types ...kind) population {
	t.Helper()
	p := population{byName: map[string]resource{}}
	for k := range kinds {
		if len(types) > 0 && !slices.Contains(types, k) {
			continue
		}
		for i, one := range lines(t, dir, k.String()) {
			if !json.Valid(one) {
				t.Fatalf("%s line %d is not valid JSON: %s", k, i+1, one)
			}
			var r resource
			if err := json.Unmarshal(one, &r); err != nil {
				t.Fatal(err)
			}
			if r["resourceType"] != k.String() {
				t.Fatalf("%s line %d is a %v", k, i+1, r["resourceType"])
			}
			p.all = append(p.all, r)
			p.byName[r.name()] = r
		}
	}
	return p
}

// TestContents parses one population and checks every promise about its resources.
func TestContents(t *testing.T) {
	dir, _ := generated(t, Config{Patients: 30, Seed: 2})
	p := parsed(t, dir)
	for name, check := range map[string]func(*testing.T, population){
		"ids are unique and shaped like UUIDs":          idsAreUniqueAndShapedLikeUUIDs,
		"every reference resolves":                      everyReferenceResolves,
		"subjects are patients, and records do not mix": subjectsArePatientsAndRecordsDoNotMix,
		"Provenance targets what it should":             provenanceTargets,
		"required elements are there":                   requiredElementsAreThere,
		"dates are in order":                            datesAreInOrder,
		"values are plausible":                          valuesArePlausible,
		"of the pool of shared resources some idle":     sharedResources,
	} {
		t.Run(name, func(t *testing.T) { check(t, p) })
	}
}

func idsAreUniqueAndShapedLikeUUIDs(t *testing.T, p population) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[any]string{}
	for _, r := range p.all {
		id := r["id"]
		if before, twice := seen[id]; twice {
			t.Errorf("%s has the id of %s", r.name(), before)
		}
		seen[id] = r.name()
		if r["resourceType"] != "Group" && !form.MatchString(fmt.Sprint(id)) {
			t.Errorf("id of %s is not shaped like a UUID", r.name())
		}
	}
}

func TestTheFirstTenPatientsHaveEveryType(t *testing.T) {
	for seed := range uint64(6) {
		_, summary := generated(t, Config{Patients: 10, Seed: seed})
		for k := range kinds {
			if summary.Types[k.String()] == 0 {
				t.Errorf("seed %d has no %s", seed, k)
			}
		}
	}
}

func TestFiftyPatientsHaveEveryTypeOfTheList(t *testing.T) {
	_, summary := generated(t, Config{Patients: 50, Seed: 4})
	for _, typ := range []string{
		"AllergyIntolerance", "CarePlan", "CareTeam", "Condition", "Device", "DiagnosticReport", "DocumentReference",
		"Encounter", "Goal", "Immunization", "MedicationRequest", "Observation", "Organization", "Patient",
		"Practitioner", "Procedure", "Provenance", "RelatedPerson", "ServiceRequest", "Coverage",
		"MedicationDispense", "Specimen", "Location", "Medication", "PractitionerRole", "QuestionnaireResponse",
		"Appointment", "Group",
	} {
		if summary.Types[typ] == 0 {
			t.Errorf("no %s", typ)
		}
	}
}

// references calls yield with every Reference.reference in the value.
func references(value any, yield func(string)) {
	switch value := value.(type) {
	case map[string]any:
		if target, ok := value["reference"].(string); ok {
			yield(target)
		}
		for _, member := range value {
			references(member, yield)
		}
	case []any:
		for _, element := range value {
			references(element, yield)
		}
	}
}

func everyReferenceResolves(t *testing.T, p population) {
	foreign, contained, local := 0, 0, 0
	for _, r := range p.all {
		references(map[string]any(r), func(target string) {
			switch {
			case strings.HasPrefix(target, "https://referrals.example.org/"):
				foreign++
			case strings.HasPrefix(target, "#"):
				contained++
				if "#"+r.text("contained.id") != target {
					t.Errorf("%s does not contain %s", r.name(), target)
				}
			default:
				local++
				if p.byName[target] == nil {
					t.Errorf("%s references %s, which is not there", r.name(), target)
				}
			}
		})
	}
	if foreign == 0 || contained == 0 || local == 0 {
		t.Errorf("%d foreign, %d contained, %d local references: want some of each", foreign, contained, local)
	}
}

// subjects has the element that names the patient of a resource. All references of the resource must agree with it.
var subjects = map[string]string{
	"AllergyIntolerance": "patient", "CarePlan": "subject", "CareTeam": "subject", "Condition": "subject",
	"Coverage": "beneficiary", "Device": "patient", "DiagnosticReport": "subject", "DocumentReference": "subject",
	"Encounter": "subject", "Goal": "subject", "Immunization": "patient", "MedicationDispense": "subject",
	"MedicationRequest": "subject", "Observation": "subject", "Procedure": "subject",
	"QuestionnaireResponse": "subject", "RelatedPerson": "patient", "ServiceRequest": "subject",
	"Specimen": "subject",
}

func subjectsArePatientsAndRecordsDoNotMix(t *testing.T, p population) {
	of := func(r resource) string { // the patient that the resource is about, or ""
		typ := r.text("resourceType")
		if typ == "Patient" {
			return r.name()
		}
		return r.text(subjects[typ] + ".reference")
	}
	together := 0
	for _, r := range p.all {
		typ := r.text("resourceType")
		if path, about := subjects[typ]; about {
			patient := r.text(path + ".reference")
			if p.byName[patient] == nil || !strings.HasPrefix(patient, "Patient/") {
				t.Errorf("%s is about %q, which is not a patient", r.name(), patient)
			}
			references(map[string]any(r), func(target string) {
				if other := p.byName[target]; other != nil && of(other) != "" && of(other) != patient {
					t.Errorf("%s is about %s and references %s of %s", r.name(), patient, target, of(other))
				}
			})
		}
		if typ == "Appointment" {
			patients := 0
			for _, actor := range r.at("participant.actor.reference") {
				if strings.HasPrefix(actor.(string), "Patient/") {
					patients++
				}
			}
			if patients < 1 || patients > 2 {
				t.Errorf("%s has %d patients", r.name(), patients)
			}
			together += patients - 1
		}
	}
	if together == 0 {
		t.Error("no Appointment has two patients")
	}
}

func provenanceTargets(t *testing.T, p population) {
	targeted := map[string]int{}
	for _, r := range p.all {
		if r["resourceType"] != "Provenance" {
			continue
		}
		organizations, others := 0, 0
		for _, target := range r.at("target.reference") {
			typ, _, _ := strings.Cut(target.(string), "/")
			targeted[typ]++
			if typ == "Organization" {
				organizations++
			} else {
				others++
			}
		}
		if organizations > 0 && others > 0 {
			t.Errorf("%s targets an Organization and something of a patient", r.name())
		}
	}
	for _, typ := range []string{"Observation", "Encounter", "Patient", "Organization"} {
		if targeted[typ] == 0 {
			t.Errorf("no Provenance targets a %s", typ)
		}
	}
}

// required has the elements that R4 or US Core requires in every resource of a type. "a|b" is either.
var required = map[string]string{
	"AllergyIntolerance": "patient clinicalStatus verificationStatus code",
	"Appointment":        "status participant.actor participant.status",
	"CarePlan":           "status intent subject text.status text.div category",
	"CareTeam":           "subject participant.role participant.member",
	"Condition":          "subject code category clinicalStatus verificationStatus",
	"Coverage":           "status beneficiary payor relationship identifier|subscriberId",
	"Device":             "patient type udiCarrier.deviceIdentifier",
	"DiagnosticReport":   "status code category subject effectiveDateTime issued",
	"DocumentReference":  "status content.attachment.contentType content.attachment.data type category subject",
	"Encounter":          "status class.code type subject period.start",
	"Goal":               "lifecycleStatus description.text subject",
	"Group":              "type actual quantity",
	"Immunization":       "status vaccineCode patient occurrenceDateTime primarySource",
	"Location":           "name",
	"Medication":         "code",
	"MedicationDispense": "status medicationCodeableConcept|medicationReference subject",
	"MedicationRequest":  "status intent medicationCodeableConcept|medicationReference subject requester authoredOn",
	"Observation": "status code category subject effectiveDateTime " +
		"valueQuantity|valueCodeableConcept|valueString|valueBoolean|component",
	"Organization":          "name active",
	"Patient":               "identifier.system identifier.value name.family gender birthDate",
	"Practitioner":          "identifier.system identifier.value name.family",
	"PractitionerRole":      "practitioner organization code specialty",
	"Procedure":             "status code subject performedPeriod.start",
	"Provenance":            "target recorded agent.who agent.type",
	"QuestionnaireResponse": "status questionnaire subject authored item.linkId",
	"RelatedPerson":         "patient active relationship",
	"ServiceRequest":        "status intent subject code",
	"Specimen":              "type subject",
}

func requiredElementsAreThere(t *testing.T, p population) {
	for _, r := range p.all {
		elements := required[r.text("resourceType")]
		if elements == "" {
			t.Fatalf("no required elements are known for %v", r["resourceType"])
		}
		for element := range strings.FieldsSeq(elements + " id meta.lastUpdated") {
			there := slices.ContainsFunc(strings.Split(element, "|"), func(path string) bool {
				return len(r.at(path)) > 0
			})
			if !there {
				t.Errorf("%s has no %s", r.name(), element)
			}
		}
	}
}

// instantOf parses a FHIR date or dateTime.
func instantOf(t *testing.T, r resource, path string) (time.Time, bool) {
	t.Helper()
	text := r.text(path)
	if text == "" {
		return time.Time{}, false
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, true
		}
	}
	t.Errorf("%s: %s is no date: %q", r.name(), path, text)
	return time.Time{}, false
}

func datesAreInOrder(t *testing.T, p population) {
	present := time.Unix(int64(today), 0)
	inOrder := map[string][][]string{
		"AllergyIntolerance": {{"onsetDateTime", "recordedDate", "meta.lastUpdated"}},
		"Appointment":        {{"created", "start", "end"}},
		"CarePlan":           {{"period.start", "period.end"}, {"created", "meta.lastUpdated"}},
		"Condition": {{"onsetDateTime", "abatementDateTime"},
			{"onsetDateTime", "recordedDate", "meta.lastUpdated"}},
		"Coverage":           {{"period.start", "period.end"}},
		"Device":             {{"manufactureDate", "meta.lastUpdated"}, {"manufactureDate", "expirationDate"}},
		"DiagnosticReport":   {{"effectiveDateTime", "issued", "meta.lastUpdated"}},
		"DocumentReference":  {{"context.period.start", "context.period.end", "date", "meta.lastUpdated"}},
		"Encounter":          {{"period.start", "period.end", "meta.lastUpdated"}},
		"Goal":               {{"startDate", "target.dueDate"}},
		"Immunization":       {{"occurrenceDateTime", "meta.lastUpdated"}},
		"MedicationDispense": {{"whenPrepared", "whenHandedOver", "meta.lastUpdated"}},
		"MedicationRequest": {{"authoredOn", "meta.lastUpdated"},
			{"dispenseRequest.validityPeriod.start", "dispenseRequest.validityPeriod.end"}},
		"Observation":           {{"effectiveDateTime", "issued", "meta.lastUpdated"}},
		"Patient":               {{"birthDate", "deceasedDateTime"}, {"birthDate", "meta.lastUpdated"}},
		"Procedure":             {{"performedPeriod.start", "performedPeriod.end", "meta.lastUpdated"}},
		"Provenance":            {{"recorded", "meta.lastUpdated"}},
		"QuestionnaireResponse": {{"authored", "meta.lastUpdated"}},
		"ServiceRequest":        {{"authoredOn", "occurrenceDateTime"}, {"authoredOn", "meta.lastUpdated"}},
		"Specimen":              {{"collection.collectedDateTime", "receivedTime", "meta.lastUpdated"}},
	}
	for _, r := range p.all {
		typ := r.text("resourceType")
		if updated, _ := instantOf(t, r, "meta.lastUpdated"); updated.After(present) {
			t.Errorf("%s was updated in the future, %s", r.name(), updated)
		}
		patient := p.byName[r.text(subjects[typ]+".reference")]
		for _, chain := range inOrder[typ] {
			var before time.Time
			if patient != nil {
				before, _ = instantOf(t, patient, "birthDate")
			}
			for _, path := range chain {
				at, there := instantOf(t, r, path)
				if !there {
					continue
				}
				if at.Before(before) {
					t.Errorf("%s: %s is %s, before the preceding date %s", r.name(), path, at, before)
				}
				before = at
			}
		}
		if encounter := p.byName[r.text("encounter.reference")]; encounter != nil && typ == "Observation" {
			at, _ := instantOf(t, r, "effectiveDateTime")
			start, _ := instantOf(t, encounter, "period.start")
			end, _ := instantOf(t, encounter, "period.end")
			if at.Before(start) || at.After(end) {
				t.Errorf("%s was made at %s, outside its visit from %s to %s", r.name(), at, start, end)
			}
		}
		if death := patient.text("deceasedDateTime"); death != "" && typ == "Encounter" {
			died, _ := instantOf(t, patient, "deceasedDateTime")
			if end, _ := instantOf(t, r, "period.end"); end.After(died) {
				t.Errorf("%s ends after the patient's death", r.name())
			}
		}
	}
}

func valuesArePlausible(t *testing.T, p population) {
	ranges := map[string][2]float64{
		"8302-2": {40, 210}, "29463-7": {2, 200}, "39156-5": {9, 60}, "8867-4": {40, 170}, "9279-1": {8, 50},
		"8310-5": {35, 41}, "9843-4": {30, 55}, "2708-6": {85, 100}, "8480-6": {80, 220}, "8462-4": {40, 140},
		"2823-3": {2, 7}, "718-7": {8, 20}, "4548-4": {3, 12}, "5811-5": {1, 1.05},
	}
	number := func(object any, path string) float64 {
		t.Helper()
		found := resource(object.(map[string]any)).at(path)
		if len(found) != 1 {
			t.Fatalf("%d values at %s", len(found), path)
		}
		return found[0].(float64)
	}
	seen := map[string]bool{}
	heaviest := 0.0
	check := func(r resource, part map[string]any) {
		code := resource(part).text("code.coding.code")
		limits, known := ranges[code]
		if !known || part["valueQuantity"] == nil {
			return
		}
		seen[code] = true
		value := number(part, "valueQuantity.value")
		if value < limits[0] || value > limits[1] {
			t.Errorf("%s: %s is %v, want %v", r.name(), code, value, limits)
		}
		if code == "29463-7" {
			heaviest = max(heaviest, value)
		}
	}
	for _, r := range p.all {
		if r["resourceType"] != "Observation" {
			continue
		}
		check(r, r)
		if parts := r.at("component"); len(parts) > 0 {
			check(r, parts[0].(map[string]any))
			check(r, parts[1].(map[string]any))
			if number(parts[0], "valueQuantity.value") <= number(parts[1], "valueQuantity.value") {
				t.Errorf("%s: the upper blood pressure is not above the lower one", r.name())
			}
		}
		if verdict := r.text("interpretation.coding.code"); verdict != "" {
			value := number(map[string]any(r), "valueQuantity.value")
			want := "N"
			if value < number(map[string]any(r), "referenceRange.low.value") {
				want = "L"
			} else if value > number(map[string]any(r), "referenceRange.high.value") {
				want = "H"
			}
			if verdict != want {
				t.Errorf("%s is said to be %s, is %s", r.name(), verdict, want)
			}
		}
	}
	if heaviest < 80 {
		t.Errorf("the heaviest patient weighs only %v kg", heaviest)
	}
	for code := range ranges {
		if !seen[code] {
			t.Errorf("no observation of %s", code)
		}
	}
}

func sharedResources(t *testing.T, p population) {
	count := map[string]int{}
	named := map[string]bool{}
	for _, r := range p.all {
		typ := r.text("resourceType")
		count[typ]++
		if subjects[typ] != "" {
			references(map[string]any(r), func(target string) { named[target] = true })
		}
		if typ == "Organization" {
			seen := map[string]bool{}
			for up := r; up != nil; up = p.byName[up.text("partOf.reference")] {
				if seen[up.name()] {
					t.Fatalf("%s is part of itself", r.name())
				}
				seen[up.name()] = true
			}
		}
	}
	for typ, want := range map[string]int{
		"Organization": 40, "Location": 60, "Practitioner": 200, "PractitionerRole": 200, "Medication": 60,
	} {
		used := 0
		for target := range named {
			if strings.HasPrefix(target, typ+"/") {
				used++
			}
		}
		if count[typ] != want {
			t.Errorf("%d of %s, want %d", count[typ], typ, want)
		}
		if used == 0 {
			t.Errorf("no record references a %s", typ)
		}
		if typ != "Medication" && used == want {
			t.Errorf("records reference every %s, want some unreferenced ones", typ)
		}
	}
}

func TestInstantsAreWrittenAsTheCalendarSays(t *testing.T) {
	for at := int64(-5_000_000_000); at < 5_000_000_000; at += 86_399*13 + 7 {
		want := time.Unix(at, 0).UTC().Format(time.RFC3339)
		if got := string(appendInstant(nil, instant(at))); got != want {
			t.Fatalf("%d is written %s, want %s", at, got, want)
		}
	}
	if got := string(appendInstant(nil, today)); got != "2025-10-01T00:00:00Z" {
		t.Errorf("the present is %s", got)
	}
}

func TestDecimals(t *testing.T) {
	for _, c := range []struct {
		n, places int
		want      string
	}{{0, 0, "0"}, {7, 1, "0.7"}, {1005, 3, "1.005"}, {-25, 1, "-2.5"}, {-3, 0, "-3"}, {1230, 2, "12.30"}} {
		var l line
		if got := string(l.decimal(c.n, c.places).buf); got != c.want {
			t.Errorf("%d with %d places is written %s, want %s", c.n, c.places, got, c.want)
		}
	}
}
