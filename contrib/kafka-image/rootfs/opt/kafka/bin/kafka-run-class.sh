#!/bin/bash
# Become the JVM that runs a class of Kafka's: kafka-run-class.sh CLASS [ARG]...
home=$(cd "$(dirname "$0")/.." && pwd)
[ -e "$home/config/tools-log4j2.yaml" ] && logging="-Dlog4j2.configurationFile=$home/config/tools-log4j2.yaml"
: "${logging:=-Dlog4j.configuration=file:$home/config/tools-log4j.properties}"
: "${KAFKA_JVM_PERFORMANCE_OPTS:=-server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:+ExplicitGCInvokesConcurrent}"
# shellcheck disable=SC2086  # lists of options
exec java ${KAFKA_HEAP_OPTS:--Xmx256M} $KAFKA_JVM_PERFORMANCE_OPTS ${KAFKA_LOG4J_OPTS:-$logging} ${KAFKA_JMX_OPTS:-} \
  -Dkafka.logs.dir="${LOG_DIR:-$home/logs}" ${KAFKA_OPTS:-} -cp "$home/libs/*" "$@"
