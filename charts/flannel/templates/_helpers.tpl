{{- /* SPDX-FileCopyrightText: The appliance authors */ -}}
{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* The image by digest; the tag stays in it for people who read. Without a digest it only shows what the chart looks like. */ -}}
{{- define "flannel.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "flannel.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "flannel.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
