package pipeline_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// binary is a Binary with the text as its content.
func binary(id, text string, more ...string) string {
	return line("Binary", id, append([]string{
		fmt.Sprintf(`,"contentType":"text/plain","data":%q`, base64.StdEncoding.EncodeToString([]byte(text))),
	}, more...)...)
}

// document is a DocumentReference of the patient with one attachment.
func document(id string, patient any, attachment string) string {
	return line("DocumentReference", id, fmt.Sprintf(
		`,"subject":{"reference":"Patient/pat-%v"},"content":[{"attachment":{%s}}]`, patient, attachment))
}

// attached returns the description and the content at the URL of an attachment, and checks that the API would find it.
func (fx *fixture) attached(job export.Job, url string) (export.Attachment, string) {
	fx.t.Helper()
	name, ours := strings.CutPrefix(url, "https://x/fhir/exports/"+string(job.ID)+"/attachments/")
	unit, packName, offset, ok := export.ParseAttachmentName(name)
	if !ours || !ok {
		fx.t.Fatalf("%q is not the URL of an attachment", url)
	}
	result, err := fx.jobs.Result(fx.t.Context(), job.ID, unit)
	must(fx.t, err)
	at := slices.IndexFunc(result.Attachments, func(p export.Pack) bool { return p.Name == packName })
	if at < 0 {
		fx.t.Fatalf("%q is not in a pack of %s", url, unit)
	}
	key := export.PackKey(job.ID, packName)
	origin, ok := export.ParseKey(key)
	published, err := fx.jobs.Published(fx.t.Context(), []export.Origin{origin})
	if err != nil || !ok || !published[0] {
		fx.t.Errorf("%s is not of the attempt that was committed: %v", key, err)
	}
	pack := fx.read(key)
	if int64(len(pack)) != result.Attachments[at].Stored {
		fx.t.Errorf("%s has %d bytes: %+v", key, len(pack), result.Attachments[at])
	}
	found, length, err := export.DecodeAttachment(pack[offset:])
	must(fx.t, err)
	content := pack[offset+int64(length):][:found.Size]
	if sum := sha256.Sum256(content); found.SHA256 != hex.EncodeToString(sum[:]) {
		fx.t.Errorf("%s: digest %s", url, found.SHA256)
	}
	return found, string(content)
}

// packs returns the packs of the unit of a type, and how many attachments they have.
func (fx *fixture) packs(job export.JobID, unit export.UnitID) (packs []export.Pack, count int64) {
	fx.t.Helper()
	result, err := fx.jobs.Result(fx.t.Context(), job, unit)
	must(fx.t, err)
	for _, pack := range result.Attachments {
		count += pack.Count
	}
	return result.Attachments, count
}

// urls returns the values of url and the codes of data-absent-reason in the line, in order.
func urls(t *testing.T, line string) (found []string) {
	t.Helper()
	var walk func(value any)
	walk = func(value any) {
		switch value := value.(type) {
		case []any:
			for _, element := range value {
				walk(element)
			}
		case map[string]any:
			for _, key := range keysOf(value) {
				if text, ok := value[key].(string); ok && (key == "url" || key == "valueCode") {
					found = append(found, text)
				}
				walk(value[key])
			}
		}
	}
	var parsed any
	must(t, json.Unmarshal([]byte(line), &parsed))
	walk(parsed)
	return found
}

const absentURL = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"

func TestAttachments(t *testing.T) { // L-12
	t.Parallel()
	context := func(reference string) string {
		return fmt.Sprintf(`,"securityContext":{"reference":%q}`, reference)
	}
	foreign := document("foreign", 1, `"url":"https://other.example/Binary/plain"`)
	inline := document("inline", 1, `"contentType": "Binary/x", "data":"QQ==" , "title":"url Binary/plain"`)
	rows := []struct {
		id   string // of the line
		line string
		want string // the content, or the data-absent-reason; "" for a line that stays as it is
	}{
		{"relative", document("relative", 1, `"url":"Binary/plain","title":"A \"B\""`), "plain text"},
		{"slash", document("slash", 2, `"contentType":"text/plain" , "url" : "/Binary/plain"`), "plain text"},
		{"absolute", document("absolute", 1, `"url":"https://ehr.example/fhir/Binary/plain"`), "plain text"},
		{"escaped", document("escaped", 1, `"url":"Binary\/plain"`), "plain text"},
		{"version", document("version", 1, `"url":"Binary/plain/_history/1"`), "plain text"},
		{"spaced", document("spaced", 1, `"url":"Binary/spaced"`), "broken into lines"},
		{"mine", document("mine", 2, `"url":"Binary/of-2"`), "of the second"},
		{"self", document("self", 2, `"url":"Binary/of-self"`), "of the resource"},
		{"nested", observation("nested", 1, `,"extension":[[],{"url":"https://e","valueAttachment":{"url":"Binary/plain"}}]`), "plain text"},
		{"other-member", document("other-member", 1, `"url":"Binary/of-2"`), "of the second"},
		{"stranger", document("stranger", 1, `"url":"Binary/of-9"`), "masked"},
		{"not-self", document("not-self", 2, `"url":"Binary/of-self"`), "masked"},
		{"encounter", document("encounter", 1, `"url":"Binary/of-encounter"`), "masked"},
		{"logical", document("logical", 1, `"url":"Binary/logical"`), "masked"},
		{"twice", document("twice", 1, `"url":"Binary/twice"`), "unknown"},
		{"missing", document("missing", 1, `"url":"Binary/gone"`), "unknown"},
		{"broken", document("broken", 1, `"url":"Binary/broken"`), "unknown"},
		{"empty", document("empty", 1, `"url":"Binary/empty"`), "unknown"},
		{"explained", document("explained", 1, `"url":"Binary/gone","_url":{"extension":[{"url":"`+absentURL+
			`","valueCode":"error"}]}`), "error"},
		{"foreign", foreign, ""}, {"inline", inline, ""},
	}
	all := []string{
		binary("plain", "plain text"), line("Binary", "spaced", `,"contentType":"x","data":"YnJva2VuIGlu\n dG8gbGluZXM="`),
		binary("of-2", "of the second", context("Patient/pat-2")), binary("of-9", "of a stranger", context("Patient/pat-9")),
		binary("of-self", "of the resource", context("DocumentReference/self")),
		binary("of-encounter", "?", context("Encounter/e")),
		binary("logical", "?", `,"securityContext":{"identifier":{"value":"pat-1"}}`),
		binary("twice", "?", `,"data":"QQ=="`),
		line("Binary", "broken", `,"contentType":"text/plain","data":"QQ="`), line("Binary", "empty", `,"contentType":"text/plain"`),
	}
	for _, row := range rows {
		all = append(all, row.line)
	}
	fx := newFixture(t, holding(t, all...), members...)
	got := fx.export("DocumentReference", "Observation")
	lines := slices.Concat(got.lines["DocumentReference"], got.lines["Observation"])
	if got.job.State != export.Completed || len(lines) != len(rows) {
		t.Fatalf("the job is %s with %d lines", got.job.State, len(lines))
	}
	for _, row := range rows {
		at := slices.IndexFunc(lines, func(line string) bool {
			return strings.Contains(line, fmt.Sprintf(`"id":%q`, row.id)) || strings.Contains(line, `"id":"obs-`+row.id)
		})
		switch found := urls(t, lines[at]); {
		case row.want == "":
			if lines[at] != row.line {
				t.Errorf("%s became %s", row.line, lines[at])
			}
		case slices.Contains([]string{"masked", "unknown", "error"}, row.want):
			if !slices.Equal(found, []string{absentURL, row.want}) || strings.Contains(lines[at], "Binary/") {
				t.Errorf("%s: %s", row.id, lines[at])
			}
		default:
			description, content := fx.attached(got.job, found[len(found)-1])
			if content != row.want || row.id == "spaced" && description.ContentType != "application/octet-stream" ||
				row.id != "spaced" && description.ContentType != "text/plain" {
				t.Errorf("%s: %q, %+v", row.id, content, description)
			}
		}
	}
	if title := `"title":"A \"B\""`; !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, title) }) {
		t.Errorf("no line has %s", title)
	}
	// A Binary that several lines of a unit name is stored once.
	if packs, count := fx.packs(got.job.ID, "DocumentReference-00000"); len(packs) != 1 || count != 4 {
		t.Errorf("%d attachments in %+v, want 4 in one", count, packs)
	}
	got.wantIssues(t, "warning", "DocumentReference: 5 left out: the content of attachments whose Binary is missing",
		"DocumentReference: 4 left out: the content of attachments whose Binary may be about another patient")
}

// A stage before drops the line or the element: then nothing is stored.
func TestAttachmentsOfWhatIsNotExported(t *testing.T) {
	t.Parallel()
	photo := line("Patient", "pat-1", `,"active":true,"photo":[{"url":"Binary/plain"}]`)
	other := line("Patient", "pat-2", `,"active":false,"photo":[{"url":"Binary/plain"}]`)
	fx := newFixture(t, holding(t, photo, other, binary("plain", "a photo")), members...)
	for name, row := range map[string]struct {
		request export.Request
		stored  int64
	}{
		"everything": {export.Request{}, 1},
		"_elements":  {export.Request{Elements: []string{"Patient.active"}}, 0},
		"the photo":  {export.Request{Elements: []string{"Patient.photo"}}, 1},
		"dropped":    {export.Request{Filters: []string{"Patient?active=x"}}, 0},
	} {
		row.request.GroupID, row.request.Types = groupID, []string{"Patient"}
		got := fx.run(row.request)
		if _, count := fx.packs(got.job.ID, "Patient-00000"); count != row.stored || got.job.State != export.Completed {
			t.Errorf("%s: %d attachments, want %d", name, count, row.stored)
		}
	}
}

// A Binary without a securityContext, of a resource about nobody, may be about any patient.
func TestAttachmentsOfResourcesAboutNobody(t *testing.T) {
	t.Parallel()
	all := []string{
		patient(1), patient(9), observation(1, 1, `,"performer":[{"reference":"Practitioner/doc"}]`),
		line("Practitioner", "doc", `,"photo":[{"url":"Binary/plain"},{"url":"Binary/own"}]`),
		line("Library", "lib", `,"content":[{"url":"Binary/plain"},{"url":"Binary/of-1"},{"url":"Binary/of-9"}]`),
		binary("plain", "whose?"), binary("own", "a photo", ref("securityContext", "Practitioner/doc")),
		binary("of-1", "shown", ref("securityContext", "Patient/pat-1")),
		binary("of-9", "hidden", ref("securityContext", "Patient/pat-9")),
	}
	fx := newFixture(t, holding(t, all...), "pat-1")
	check := func(got outcome, typ string, want ...string) {
		t.Helper()
		var found []string
		for _, url := range urls(t, strings.Join(got.lines[typ], "")) {
			if strings.HasPrefix(url, "https://x/") {
				_, url = fx.attached(got.job, url)
			}
			if url != absentURL {
				found = append(found, url)
			}
		}
		if !slices.Equal(found, want) {
			t.Errorf("%s: %q, want %q", typ, found, want)
		}
	}
	check(fx.export("Observation", "Practitioner"), "Practitioner", "masked", "a photo")
	fx.people.patients = directory.NameList{Names: []string{"pat-1"}}
	some := fx.run(at(export.SystemLevel, "Library", "Practitioner"))
	check(some, "Library", "masked", "shown", "masked")
	check(some, "Practitioner", "masked", "a photo")
	fx.people.patients = directory.NameList{All: true}
	check(fx.run(at(export.SystemLevel, "Library")), "Library", "whose?", "shown", "hidden")
}

// What a failed attempt stored is not listed, and the sweep can tell.
func TestAttachmentsOfAFailedAttempt(t *testing.T) {
	t.Parallel()
	all := []string{
		document("a", 1, `"url":"Binary/a"`), document("b", 2, `"url":"Binary/b"`), binary("a", "first"), binary("b", "second"),
	}
	fx := newFixture(t, failing(holding(t, all...), "DocumentReference", 1), members...)
	fx.cfg.FileBytes = 1 // each attachment is a pack
	got := fx.export("DocumentReference")
	var contents []string
	for _, line := range got.lines["DocumentReference"] {
		_, content := fx.attached(got.job, urls(t, line)[0])
		contents = append(contents, content)
	}
	if !slices.Equal(contents, []string{"first", "second"}) {
		t.Errorf("contents: %q", contents)
	}
	var stored []export.Origin
	must(t, fx.objects.List(t.Context(), export.PackKey(got.job.ID, ""), func(object objects.Info) error {
		origin, ok := export.ParseKey(object.Key)
		if !ok {
			t.Errorf("%s is outside of the layout", object.Key)
		}
		stored = append(stored, origin)
		return nil
	}))
	published, err := fx.jobs.Published(t.Context(), stored)
	if must(t, err); !slices.Equal(published, []bool{false, true, true}) {
		t.Errorf("published: %v of %v", published, stored)
	}
}

func TestAttachmentsAreEncrypted(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, document("a", 1, `"url":"Binary/a"`), binary("a", "secret words")), members...)
	plain := fx.objects
	fx.encrypt(func(context.Context, string) ([]byte, error) { return make([]byte, 32), nil })
	job := export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: instant, Owner: owner, Key: []byte("wrapped"),
		Request: export.Request{
			URL: "https://x/fhir/Group/" + groupID + "/$export", GroupID: groupID, Types: []string{"DocumentReference"},
		},
	}
	fx.record(job)
	got := fx.outcome(fx.finish(fx.worker(), job.ID))
	if _, content := fx.attached(got.job, urls(t, got.lines["DocumentReference"][0])[0]); content != "secret words" {
		t.Errorf("content %q", content)
	}
	packs, _ := fx.packs(job.ID, "DocumentReference-00000")
	fx.objects = plain
	if raw := fx.read(export.PackKey(job.ID, packs[0].Name)); bytes.Contains(raw, []byte("secret")) || len(raw) == 0 {
		t.Errorf("the pack is stored as %q", raw)
	}
}
