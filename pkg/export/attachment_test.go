package export_test

import (
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

var described = export.Attachment{ContentType: "text/plain; charset=utf-8", Size: 3, SHA256: strings.Repeat("ab", 32)}

func TestAttachmentDescriptions(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]string{
		described.ContentType: described.ContentType, "application/pdf": "application/pdf", "": "application/octet-stream",
		"text": "application/octet-stream", "text/plain;\n a=b": "application/octet-stream", "text/é": "application/octet-stream",
		"text/" + strings.Repeat("x", 200): "application/octet-stream",
	} {
		a := described
		a.ContentType = contentType
		line, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		a.ContentType = want
		if got, length, err := export.DecodeAttachment(append(line, "abc"...)); err != nil || got != a || length != len(line) {
			t.Errorf("%q: %+v, %d of %d bytes, %v", contentType, got, length, len(line), err)
		}
	}
	good, _ := described.Encode()
	for _, text := range []string{
		"", "\n", "abc", "{}\n", strings.TrimSpace(string(good)), " " + string(good), strings.Replace(string(good), ":3", ":0", 1),
		strings.Replace(string(good), "ab", "a", 1), strings.Repeat(" ", export.MaxAttachmentHeader) + string(good),
		strings.Replace(string(good), "}", `,"x":1}`, 1),
	} {
		if got, _, err := export.DecodeAttachment([]byte(text)); err == nil {
			t.Errorf("%q was read as %+v", text, got)
		}
	}
}

func TestAttachmentNames(t *testing.T) {
	t.Parallel()
	pack := export.PackName("Media-00001", 7, "Media", 2)
	unit, from, offset, ok := export.ParseAttachmentName(export.AttachmentName(pack, 512))
	if unit != "Media-00001" || from != pack || offset != 512 || !ok {
		t.Errorf("%q, %q, %d, %v", unit, from, offset, ok)
	}
	for _, name := range []string{"", pack, pack + ".-1", pack + ".01", pack + ".x", pack + ".0.0", "...."} {
		if _, _, _, ok := export.ParseAttachmentName(name); ok {
			t.Errorf("%q was parsed", name)
		}
	}
}

func TestBaseOfARequest(t *testing.T) {
	t.Parallel()
	const base = "https://host/fhir"
	for url, level := range map[string]export.Level{
		base + "/$export": export.SystemLevel, base + "/%24export?_type=a/b": export.SystemLevel,
		base + "/Patient/$export": export.PatientLevel, base + "/Group/g.1/$export?_since=x": export.GroupLevel,
	} {
		if got, ok := (export.Request{URL: url, Level: level, GroupID: "g.1"}).Base(); got != base || !ok {
			t.Errorf("%s: %q, %v", url, got, ok)
		}
	}
	for _, url := range []string{"", base + "/$export", base + "/Group/other/$export"} {
		if got, ok := (export.Request{URL: url, GroupID: "g.1"}).Base(); ok {
			t.Errorf("%s: %q", url, got)
		}
	}
}
