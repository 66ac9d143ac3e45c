package elements

import (
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		values []string
		want   string
	}{
		"absent":              {nil, ""},
		"one":                 {[]string{"id"}, "id"},
		"lists and repeats":   {[]string{"name , id", "Patient.meta,id"}, "Patient.meta,id,name"},
		"a choice":            {[]string{"Observation.value,onset"}, "Observation.value,onset"},
		"what always stays":   {[]string{"resourceType,Patient.resourceType"}, "Patient.resourceType,resourceType"},
		"an element of a few": {[]string{"lensSpecification"}, "lensSpecification"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Parse(test.values)
			if err != nil || strings.Join(s.Entries(), ",") != test.want {
				t.Fatalf("%v, %v", s.Entries(), err)
			}
			if again, err := Parse(s.Entries()); err != nil || !slices.Equal(again.Entries(), s.Entries()) {
				t.Errorf("parsed again: %v, %v", again.Entries(), err)
			}
		})
	}
}

// TestParseRefuses covers conformance P-20.
func TestParseRefuses(t *testing.T) {
	for value, reason := range map[string]string{
		"":                          "empty entry",
		" ":                         "empty entry",
		"id,":                       "empty entry",
		",id":                       "empty entry",
		"Patient.name.given":        "nested element",
		"name.given":                "nested element",
		"Foo.name.given":            "nested element",
		"Foo.id":                    "not a FHIR R4 resource type",
		"patient.id":                "nested element",
		".id":                       "not a FHIR R4 resource type",
		".":                         "not a FHIR R4 resource type",
		"id.":                       "nested element",
		"DomainResource.id":         "not a FHIR R4 resource type",
		"nosuch":                    "no root element of any type",
		"Name":                      "no root element of any type",
		"Patient":                   "no root element of any type",
		"valueQuantity":             "no root element of any type",
		"value[x]":                  "no root element of any type",
		"_birthDate":                "no root element of any type",
		"id;name":                   "no root element of any type",
		"Patient.":                  "no root element of Patient.",
		"Patient.value":             "no root element of Patient.",
		"Patient. id":               "no root element of Patient.",
		"Observation.valueQuantity": "no root element of Observation.",
		"Binary.data":               "of the type Binary",
		"Bundle.entry":              "of the type Bundle",
	} {
		_, err := Parse([]string{"id", value})
		if err == nil || !strings.HasPrefix(err.Error(), "The parameter _elements has ") ||
			!strings.Contains(err.Error(), reason) {
			t.Errorf("%q: %v, want %q", value, err, reason)
		}
	}
	const secret = "Secret-5"
	for _, value := range []string{secret, secret + ".id", "Patient." + secret, "Patient.id." + secret} {
		if _, err := Parse([]string{value}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// TestFor covers conformance P-21: types that no entry names stay whole.
func TestFor(t *testing.T) {
	for _, test := range []struct {
		elements, reduced, whole string
	}{
		{"id", "Patient Observation", ""},
		{"Patient.name", "Patient", "Observation Encounter"},
		{"Patient.name,Observation.code", "Patient Observation", "Encounter"},
		{"id,Patient.name", "Patient Observation Encounter", ""},
		{"id", "", "Binary Endpoint Bundle Foo"}, // their elements are not known
		{"name", "Patient Observation", ""},      // Observation has no such element, and is reduced to what always stays
	} {
		s := selection(t, test.elements)
		for _, typ := range strings.Fields(test.reduced) {
			if s.For(typ) == nil {
				t.Errorf("%s: %s stays whole", test.elements, typ)
			}
		}
		for _, typ := range strings.Fields(test.whole) {
			if s.For(typ) != nil {
				t.Errorf("%s: %s is reduced", test.elements, typ)
			}
		}
	}
	if (Selection{}).For("Patient") != nil {
		t.Error("without entries a type is reduced")
	}
	p := selection(t, "id,Patient.name").For("Patient")
	got, err := p.Apply(nil, []byte(`{"resourceType":"Patient","id":"a","name":[1],"gender":"male","meta":{"tag":[`+tag+`]}}`))
	must(t, err)
	if want := `{"resourceType":"Patient","id":"a","name":[1],"meta":{"tag":[` + tag + `]}}`; string(got) != want {
		t.Errorf("got %s", got)
	}
}

// TestTypesWithoutElements: which elements of these types are mandatory or modifiers is not known, so a reduced one could
// mislead. They stay whole, without the tag.
func TestTypesWithoutElements(t *testing.T) {
	var missing []string
	for _, typ := range fhir.StoredTypes() {
		if elementsOf(typ) == nil {
			missing = append(missing, typ)
		}
	}
	if want := strings.Fields(withoutElements); !slices.Equal(missing, want) {
		t.Errorf("without elements: %s", strings.Join(missing, " "))
	}
	for _, typ := range fhir.ExportableTypes() {
		if elementsOf(typ) == nil {
			t.Errorf("%s is exported at the group level, and its elements are not known", typ)
		}
	}
}

const withoutElements = `ActivityDefinition AuditEvent Binary BiologicallyDerivedProduct CapabilityStatement CatalogEntry
ChargeItemDefinition CodeSystem CompartmentDefinition ConceptMap Contract DeviceDefinition DeviceMetric
EffectEvidenceSynthesis Endpoint EnrollmentResponse EventDefinition Evidence EvidenceVariable ExampleScenario
GraphDefinition Group GuidanceResponse HealthcareService ImplementationGuide InsurancePlan Library Linkage Measure
MedicationKnowledge MedicinalProduct MedicinalProductAuthorization MedicinalProductContraindication
MedicinalProductIndication MedicinalProductIngredient MedicinalProductInteraction MedicinalProductManufactured
MedicinalProductPackaged MedicinalProductPharmaceutical MedicinalProductUndesirableEffect MessageDefinition
MessageHeader NamingSystem ObservationDefinition OperationDefinition OrganizationAffiliation PaymentNotice
PaymentReconciliation Person PlanDefinition Questionnaire ResearchDefinition ResearchElementDefinition
ResearchStudy RiskEvidenceSynthesis Schedule SearchParameter Slot SpecimenDefinition StructureDefinition
StructureMap Subscription Substance SubstanceNucleicAcid SubstancePolymer SubstanceProtein
SubstanceReferenceInformation SubstanceSourceMaterial SubstanceSpecification Task TerminologyCapabilities
TestReport TestScript ValueSet VerificationResult`

// TestTable: every row is complete, and no two elements of a type have a key in common.
func TestTable(t *testing.T) {
	for typ, all := range byType() {
		if !fhir.IsStored(typ) {
			t.Errorf("%s is not stored", typ)
		}
		keys := map[string]bool{}
		for _, e := range all {
			for _, key := range e.keys {
				if keys[key] || key == "" || strings.ContainsAny(key, "[]_. ") {
					t.Errorf("%s.%s: key %q", typ, e.name, key)
				}
				keys[key] = true
			}
		}
		for _, name := range []string{"resourceType", "id", "meta", "implicitRules", "modifierExtension"} {
			if !slices.ContainsFunc(all, func(e element) bool { return e.name == name && e.always }) {
				t.Errorf("%s: %s does not stay", typ, name)
			}
		}
	}
}
